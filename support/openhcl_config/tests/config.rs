//! What a configuration may say, and what is answered to a wrong one.

use openhcl_config::Config;
use openhcl_config::ConfigError;
use openhcl_config::FILE_SIZE_MAX;
use openhcl_config::Loaded;
use openhcl_config::OPTIONS;
use openhcl_config::OnCrash;
use openhcl_config::Origin;
use openhcl_config::Sources;
use openhcl_config::Start;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const TRUSTED: Sources<'static> = Sources {
    file: None,
    host_is_trusted: true,
    development_image: true,
};

fn load(file: &str, options: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    Config::load(
        Sources {
            file: Some(file.as_bytes()),
            ..TRUSTED
        },
        variables(options),
    )
}

fn variables(options: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
    options
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect::<Vec<_>>()
        .into_iter()
}

fn error(file: &str) -> String {
    load(file, &[]).unwrap_err().to_string()
}

/// A file that sets `path` to `value`.
fn file_with(path: &str, value: &str) -> String {
    let names: Vec<&str> = path.split('.').collect();
    let inner = names.iter().rev().fold(value.to_owned(), |inner, name| {
        format!("{{{name:?}:{inner}}}")
    });
    format!("{{\"version\":1,{}", &inner[1..])
}

/// Path, value and origin of everything.
fn rows(config: &Config) -> BTreeMap<&'static str, (String, Origin)> {
    let mut rows = BTreeMap::new();
    config.for_each(|path, value, origin| {
        rows.insert(path, (value.to_string(), origin));
    });
    rows
}

#[test]
fn without_any_source_all_is_default() {
    let loaded = Config::load(TRUSTED, std::iter::empty()).unwrap();
    assert!(
        rows(&loaded.config)
            .values()
            .all(|(_, origin)| *origin == Origin::Default)
    );
    assert_eq!(*loaded.config.worker.on_crash, OnCrash::Restart);
    assert_eq!(Ok(loaded), load(r#"{"version": 1}"#, &[]));
}

#[test]
fn the_file_overrides_defaults_and_an_option_overrides_the_file() {
    let file = r#"{"version":1,"name":"db","worker":{"start":"wait","on_crash":"stop",
        "watchdog":{"interval_ms":50}}}"#;
    let config = load(file, &[("OPENHCL_ON_CRASH", "restart"), ("HOME", "/")])
        .unwrap()
        .config;
    assert_eq!(
        (config.name.as_str(), config.name.origin),
        ("db", Origin::Host)
    );
    assert_eq!(*config.worker.start, Start::Wait);
    assert_eq!(*config.worker.on_crash, OnCrash::Restart);
    assert_eq!(
        config.worker.on_crash.origin,
        Origin::Option("OPENHCL_ON_CRASH")
    );
    assert_eq!(*config.worker.watchdog_interval, Duration::from_millis(50));
    assert_eq!(config.worker.watchdog_deadline.origin, Origin::Default);
}

#[test]
fn null_is_as_if_nothing_were_said() {
    assert_eq!(
        load(r#"{"version":1,"name":null,"diag":{"enabled":null}}"#, &[]),
        load(r#"{"version":1}"#, &[])
    );
}

#[test]
fn an_empty_option_is_as_if_it_were_not_there() {
    assert_eq!(
        load(r#"{"version":1}"#, &[("OPENHCL_DIAG", "")]),
        load(r#"{"version":1}"#, &[])
    );
}

#[test]
fn every_option_overrides_its_path() {
    let file = r#"{"version":1,"log":{"filter":"off"},"diag":{"enabled":false},
        "worker":{"start":"now","on_crash":"stop","watchdog":{"enabled":false}},
        "test_hooks":false}"#;
    for option in OPTIONS {
        let value = match option.name {
            "OPENHCL_LOG" => "debug",
            "OPENHCL_ON_CRASH" => "restart",
            "OPENHCL_ON_GUEST_CRASH" => "power_off",
            _ => "1",
        };
        let before = rows(&load(file, &[]).unwrap().config);
        let after = rows(&load(file, &[(option.name, value)]).unwrap().config);
        let changed: Vec<_> = after
            .iter()
            .filter(|(path, row)| before[*path] != **row)
            .map(|(path, (_, origin))| (*path, *origin))
            .collect();
        assert_eq!(changed, [(option.path, Origin::Option(option.name))]);
    }
}

#[test]
fn an_unknown_field_is_refused_with_its_path_and_the_known_ones() {
    assert_eq!(
        error(r#"{"version":1,"worker":{"watchdog":{"deadline":5}}}"#),
        "configuration: worker.watchdog.deadline: unknown field `deadline`, expected one of \
         `enabled`, `interval_ms`, `deadline_ms` at line 1 column 45"
    );
    assert!(error(r#"{"version":1,"wroker":{}}"#).contains("unknown field `wroker`"));
}

#[test]
fn a_value_of_a_wrong_type_is_refused_with_path_value_and_expectation() {
    assert_eq!(
        error(r#"{"version":1,"worker":{"max_restarts":"many"}}"#),
        "configuration: worker.max_restarts: invalid type: string \"many\", expected u32 \
         at line 1 column 44"
    );
    assert_eq!(
        error(r#"{"version":1,"worker":{"max_restarts":-1}}"#),
        "configuration: worker.max_restarts: invalid value: integer `-1`, expected u32 \
         at line 1 column 40"
    );
    assert_eq!(
        error(r#"{"version":1,"worker":{"on_crash":"panic"}}"#),
        "configuration: worker.on_crash: unknown variant `panic`, expected `restart` or `stop` \
         at line 1 column 41"
    );
}

#[test]
fn a_value_out_of_range_is_refused_with_path_value_and_range() {
    assert_eq!(
        error(r#"{"version":1,"worker":{"watchdog":{"deadline_ms":5}}}"#),
        "configuration: worker.watchdog.deadline_ms: is 5, expected 10 to 3600000"
    );
    assert_eq!(
        error(r#"{"version":1,"name":""}"#),
        "configuration: name: is \"\", expected 1 to 64 printable characters"
    );
    assert_eq!(
        error(r#"{"version":1,"log":{"filter":"loud"}}"#),
        "configuration: log.filter: is \"loud\", expected LEVEL or TARGET=LEVEL separated by \
         commas, LEVEL one of off, error, warn, info, debug, trace"
    );
}

#[test]
fn another_version_is_refused_before_its_fields_are_looked_at() {
    assert_eq!(
        error(r#"{"version":2,"new_field":true}"#),
        "configuration: version: is 2, expected 1"
    );
    assert_eq!(
        error("{}"),
        "configuration: version: is missing, expected 1"
    );
    assert_eq!(
        error(r#"{"version":"1"}"#),
        "configuration: version: is \"1\", expected 1"
    );
}

#[test]
fn a_field_that_stands_twice_is_refused() {
    assert!(error(r#"{"version":1,"name":"a","name":"b"}"#).contains("duplicate field `name`"));
    assert!(error(r#"{"version":1,"version":1}"#).contains("duplicate field `version`"));
}

#[test]
fn what_is_not_json_is_refused_with_line_and_column() {
    assert_eq!(
        error("{\"version\":1,\n\"name\":}"),
        "configuration is not JSON: expected value at line 2 column 8"
    );
    for text in [
        "",
        "{",
        "[1",
        "{\"version\":1} x",
        "\u{0}",
        "{\"version\":1,}",
    ] {
        assert!(
            matches!(load(text, &[]), Err(ConfigError::Syntax { .. })),
            "{text:?}"
        );
    }
    assert!(matches!(
        load("[]", &[]),
        Err(ConfigError::Version { .. } | ConfigError::Field { .. })
    ));
}

#[test]
fn a_file_that_is_too_large_is_refused_unread() {
    let text = " ".repeat(FILE_SIZE_MAX + 1);
    assert_eq!(
        error(&text),
        "configuration has 65537 bytes, expected at most 65536"
    );
}

#[test]
fn deep_nesting_is_an_error_and_no_stack_overflow() {
    let text = format!("{{\"version\":1,\"name\":{}", "[".repeat(60_000));
    assert!(load(&text, &[]).is_err());
    let text = format!("{{\"version\":{}", "[".repeat(60_000));
    assert!(load(&text, &[]).is_err());
}

#[test]
fn a_message_is_one_line_of_limited_length_whatever_the_file_holds() {
    let text = format!("{{\"version\":1,\"a\\nb{}\":1}}", "x".repeat(5000));
    let message = error(&text);
    assert!(!message.contains('\n') && message.len() < 2000, "{message}");
}

#[test]
fn a_wrong_option_is_refused_with_name_value_and_expectation() {
    let error = load(r#"{"version":1}"#, &[("OPENHCL_DIAG", "maybe")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "option OPENHCL_DIAG: is \"maybe\", expected 1, true, 0 or false"
    );
    let error = load(r#"{"version":1}"#, &[("OPENHCL_LOG", "loud")]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("option OPENHCL_LOG: is \"loud\", expected LEVEL")
    );
}

#[test]
fn a_host_that_is_not_trusted_decides_neither_about_the_log_nor_about_test_hooks() {
    let file = br#"{"version":1,"name":"x","log":{"filter":"trace"},"test_hooks":true}"#;
    let sources = Sources {
        file: Some(file),
        host_is_trusted: false,
        development_image: true,
    };
    let loaded = Config::load(sources, variables(&[])).unwrap();
    assert_eq!(loaded.dropped, ["log.filter", "test_hooks"]);
    assert_eq!(loaded.config.name.origin, Origin::Host);
    assert_eq!(loaded.config.log_filter.origin, Origin::Default);
    assert!(!*loaded.config.test_hooks);
    // The measured command line may.
    let loaded = Config::load(sources, variables(&[("OPENHCL_TEST_HOOKS", "1")])).unwrap();
    assert!(*loaded.config.test_hooks);
}

#[test]
fn an_image_that_is_not_for_development_refuses_test_hooks() {
    let sources = |file| Sources {
        file,
        host_is_trusted: true,
        development_image: false,
    };
    let file = br#"{"version":1,"test_hooks":true}"#;
    assert_eq!(
        Config::load(sources(Some(file)), variables(&[]))
            .unwrap_err()
            .to_string(),
        "configuration: test_hooks: is true, expected false: this image was not built for development"
    );
    assert_eq!(
        Config::load(sources(None), variables(&[("OPENHCL_TEST_HOOKS", "1")]))
            .unwrap_err()
            .to_string(),
        "option OPENHCL_TEST_HOOKS: is true, expected false: this image was not built for development"
    );
}

/// Where the Guide keeps the schema.
const SCHEMA: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../Guide/src/reference/configuration.schema.json"
);

#[test]
fn the_guide_has_the_schema_of_the_types() {
    let schema = openhcl_config::schema();
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(SCHEMA, &schema).unwrap();
    }
    let committed = std::fs::read_to_string(SCHEMA).unwrap();
    assert!(
        committed == schema,
        "run `UPDATE_SCHEMA=1 cargo test -p openhcl_config`: the schema is\n{schema}"
    );
}

/// All values of the schema with their paths.
fn properties() -> Vec<(String, serde_json::Value)> {
    fn walk(
        root: &serde_json::Value,
        node: &serde_json::Value,
        path: &str,
        found: &mut Vec<(String, serde_json::Value)>,
    ) {
        for (name, property) in node["properties"].as_object().unwrap() {
            let path = match path {
                "" => name.clone(),
                path => format!("{path}.{name}"),
            };
            let target = property["$ref"]
                .as_str()
                .map(|reference| &root["$defs"][reference.rsplit('/').next().unwrap()])
                .filter(|target| target.get("properties").is_some());
            match target {
                Some(target) => walk(root, target, &path, found),
                None => found.push((path, property.clone())),
            }
        }
    }
    let schema: serde_json::Value = serde_json::from_str(&openhcl_config::schema()).unwrap();
    let mut found = Vec::new();
    walk(&schema, &schema, "", &mut found);
    found
}

#[test]
fn the_schema_has_exactly_the_values_that_a_configuration_has() {
    let mut paths: Vec<String> = properties().into_iter().map(|(path, _)| path).collect();
    paths.retain(|path| path != "version");
    paths.sort();
    let config = Config::load(TRUSTED, std::iter::empty()).unwrap().config;
    assert_eq!(paths, rows(&config).into_keys().collect::<Vec<_>>());
}

#[test]
fn ranges_and_defaults_of_the_schema_are_those_of_the_code() {
    let config = Config::load(TRUSTED, std::iter::empty()).unwrap().config;
    let defaults = rows(&config);
    for (path, property) in properties() {
        if path == "version" {
            continue;
        }
        let description = property["description"].as_str().unwrap();
        let default = description.split("Default: ").nth(1).unwrap();
        let default = default.split(['.', '\n']).next().unwrap().trim_matches('"');
        assert_eq!(default, defaults[path.as_str()].0, "{path}");
        if let (Some(min), Some(max)) = (property["minimum"].as_u64(), property["maximum"].as_u64())
        {
            for value in [min, max] {
                assert!(
                    load(&file_with(&path, &value.to_string()), &[]).is_ok(),
                    "{path} {value}"
                );
            }
            for value in [min.checked_sub(1), Some(max + 1)].into_iter().flatten() {
                assert!(
                    load(&file_with(&path, &value.to_string()), &[]).is_err(),
                    "{path} {value}"
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_configuration_or_a_typed_error(
        bytes in prop::collection::vec(any::<u8>(), 0..200)
    ) {
        let sources = Sources { file: Some(&bytes), ..TRUSTED };
        if let Err(error) = Config::load(sources, std::iter::empty()) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn any_value_at_any_path_is_accepted_or_refused_by_path(
        index in 0usize..17,
        value in r#"-?[1-9][0-9]{0,11}|0|true|false|null|"[a-z=,]{0,9}"|\[\]|\{\}|\{"a":1\}|1e9|0\.5"#,
    ) {
        let properties = properties();
        let (path, _) = &properties[index % properties.len()];
        if let Err(error) = load(&file_with(path, &value), &[]) {
            let text = error.to_string();
            prop_assert!(text.contains(path.as_str()) || path == "version", "{text}");
        }
    }

    #[test]
    fn any_option_value_is_taken_or_refused_by_name(index in 0usize..6, value in "\\PC{0,20}") {
        let option = OPTIONS[index];
        if let Err(error) = load(r#"{"version":1}"#, &[(option.name, &value)]) {
            prop_assert!(error.to_string().contains(option.name));
        }
    }
}
