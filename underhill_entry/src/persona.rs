//! Which program of the image is meant.

use std::ffi::OsStr;
use std::path::Path;
use thiserror::Error;

/// A program of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Persona {
    /// PID 1.
    UnderhillInit,
    /// The paravisor process.
    OpenvmmHcl,
    /// The VM worker.
    UnderhillVm,
}

/// Why no program runs.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum PersonaError {
    /// The caller gave no name at all.
    #[error("started without a name, expected one of {known}", known = known())]
    NoName,
    /// Any other name.
    #[error("{name:?} is no program of this image, expected one of {known}", known = known())]
    Unknown {
        /// The name.
        name: String,
    },
}

/// Every program and its name.
const PERSONAS: [(&str, Persona); 3] = [
    ("underhill_init", Persona::UnderhillInit),
    ("openvmm_hcl", Persona::OpenvmmHcl),
    ("underhill_vm", Persona::UnderhillVm),
];

impl Persona {
    /// The program that `argv0`, the first word of the command, asks for.
    pub(crate) fn from_argv0(argv0: Option<&OsStr>) -> Result<Self, PersonaError> {
        let name = argv0
            .and_then(|argv0| Path::new(argv0).file_name())
            .ok_or(PersonaError::NoName)?;
        if let Some((_, persona)) = PERSONAS.iter().find(|(known, _)| name == *known) {
            return Ok(*persona);
        }
        Err(PersonaError::Unknown {
            name: name.to_string_lossy().into_owned(),
        })
    }
}

fn known() -> String {
    PERSONAS.map(|(name, _)| name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(argv0: &str) -> Result<Persona, PersonaError> {
        Persona::from_argv0(Some(OsStr::new(argv0)))
    }

    #[test]
    fn the_file_name_decides_and_not_the_directory() {
        for argv0 in ["underhill_init", "/underhill_init", "/bin/underhill_init"] {
            assert_eq!(of(argv0), Ok(Persona::UnderhillInit));
        }
        assert_eq!(of("/bin/openvmm_hcl"), Ok(Persona::OpenvmmHcl));
        assert_eq!(of("underhill_vm"), Ok(Persona::UnderhillVm));
        assert!(of("/openvmm_hcl/other").is_err());
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_right_ones() {
        assert_eq!(
            of("underhill").unwrap_err().to_string(),
            "\"underhill\" is no program of this image, expected one of underhill_init, openvmm_hcl, underhill_vm"
        );
    }

    #[test]
    fn a_caller_that_gives_no_name_gets_an_error() {
        assert_eq!(Persona::from_argv0(None), Err(PersonaError::NoName));
        for argv0 in ["", "/", ".."] {
            assert_eq!(of(argv0), Err(PersonaError::NoName));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_program_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            use std::os::unix::ffi::OsStrExt;
            let _ = Persona::from_argv0(Some(OsStr::from_bytes(&bytes)));
        }
    }
}
