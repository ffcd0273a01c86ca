use super::*;
use diag_proto::inspect::Dir;
use diag_proto::inspect::Entry;
use diag_proto::inspect::SensitivityLevel;

fn directory(entries: Vec<Entry>) -> Node {
    Node {
        kind: Some(NodeKind::Dir(Dir { entries })),
    }
}

fn entry(name: &str, level: Option<Sensitivity>, node: Node) -> Entry {
    Entry {
        name: name.into(),
        node: Some(node),
        sensitivity: Some(SensitivityLevel { level }),
    }
}

#[test]
fn only_entries_marked_safe_are_kept_at_any_depth() {
    let leaf = || Node {
        kind: Some(NodeKind::Unevaluated(())),
    };
    let safe = Some(Sensitivity::Safe(()));
    let inner = || {
        directory(vec![
            entry("kept", safe, leaf()),
            entry("sensitive", Some(Sensitivity::Sensitive(())), leaf()),
            entry("unspecified", Some(Sensitivity::Unspecified(())), leaf()),
            entry("unmarked", None, leaf()),
            Entry {
                sensitivity: None,
                ..entry("without", None, leaf())
            },
        ])
    };
    let mut tree = directory(vec![
        entry("safe", safe, inner()),
        entry("sensitive", Some(Sensitivity::Sensitive(())), inner()),
    ]);
    keep_safe(&mut tree);
    let kept = directory(vec![entry("kept", safe, leaf())]);
    assert_eq!(tree, directory(vec![entry("safe", safe, kept)]));
}

#[test]
fn deep_tree_needs_no_deep_stack() {
    let mut tree = directory(vec![]);
    for _ in 0..1000 {
        tree = directory(vec![entry("d", Some(Sensitivity::Safe(())), tree)]);
    }
    keep_safe(&mut tree);
    assert!(matches!(tree.kind, Some(NodeKind::Dir(Dir { entries })) if entries.len() == 1));
}
