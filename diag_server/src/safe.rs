//! What the host of an isolated VM may see of the tree.

use diag_proto::inspect::Node;
use diag_proto::inspect::NodeKind;
use diag_proto::inspect::Sensitivity;

/// Removes all entries that are not marked safe, at any depth.
pub(crate) fn keep_safe(node: &mut Node) {
    // A tree can be deeper than the stack allows.
    let mut nodes = vec![node];
    while let Some(node) = nodes.pop() {
        if let Some(NodeKind::Dir(directory)) = &mut node.kind {
            directory.entries.retain(|entry| {
                let level = entry.sensitivity.and_then(|sensitivity| sensitivity.level);
                level == Some(Sensitivity::Safe(()))
            });
            let entries = directory.entries.iter_mut();
            nodes.extend(entries.filter_map(|entry| entry.node.as_mut()));
        }
    }
}

#[cfg(test)]
mod tests;
