//! The rules of deny.toml that need no database of advisories, held without cargo-deny.

use serde_json::Value;
use std::process::Command;

/// The packages that a build on this machine can use, as cargo describes them.
fn packages() -> Vec<Value> {
    let rustc = Command::new("rustc").arg("-vV").output().expect("rustc starts");
    let rustc = String::from_utf8_lossy(&rustc.stdout).into_owned();
    let host = rustc.lines().find_map(|l| l.strip_prefix("host: ")).expect("rustc names its host");
    let args = ["metadata", "--locked", "--format-version", "1", "--filter-platform", host];
    let metadata = Command::new(env!("CARGO")).args(args).current_dir(crate::repository("")).output().expect("cargo starts");
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// The quoted words on the lines of deny.toml from `from` up to the next line that is `]` alone, one a line: the first.
fn listed(from: &str) -> Vec<String> {
    let text = std::fs::read_to_string(crate::repository("deny.toml")).unwrap();
    let rest = text.split_once(from).unwrap_or_else(|| panic!("deny.toml has {from:?}")).1;
    let list = rest.split_once("\n]").unwrap().0;
    list.lines().filter_map(|l| Some(l.split('"').nth(1)?.to_string())).collect()
}

/// Whether an SPDX expression (`OR`, `AND`, parentheses; `/` as an old spelling of OR) can be met with the allowed licences.
fn is_met(expression: &str, allowed: &[String]) -> bool {
    let expression = expression.replace('/', " OR ").replace(['(', ')'], "");
    // AND binds what stands on its sides; every expression in use is an AND of ORs.
    expression.split(" AND ").all(|part| part.split(" OR ").any(|l| allowed.iter().any(|a| a == l.trim())))
}

#[test]
fn dependencies_are_licensed_as_deny_toml_allows_and_come_from_crates_io() {
    let (allowed, banned) = (listed("\nallow = ["), listed("\ndeny = ["));
    assert!(allowed.iter().any(|l| l == "MIT") && banned.iter().any(|b| b == "bindgen"));
    let packages = packages();
    assert!(packages.len() > 50);
    for p in &packages {
        let name = p["name"].as_str().unwrap();
        let licence = p["license"].as_str().unwrap_or_default();
        assert!(is_met(licence, &allowed), "{name} is licensed {licence:?}");
        assert!(!banned.iter().any(|b| b == name), "{name} is banned");
        if let Some(source) = p["source"].as_str() {
            assert_eq!(source, "registry+https://github.com/rust-lang/crates.io-index", "{name}");
        }
    }
}

#[test]
fn licence_expressions() {
    let allowed = ["MIT".to_string(), "Unicode-3.0".to_string()];
    assert!(is_met("(MIT OR Apache-2.0) AND Unicode-3.0", &allowed));
    assert!(is_met("Unlicense/MIT", &allowed));
    assert!(!is_met("MIT AND GPL-3.0", &allowed));
    assert!(!is_met("", &allowed));
}
