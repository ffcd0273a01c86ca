//! openvmm_hcl
