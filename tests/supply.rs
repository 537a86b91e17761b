//! What the project is built of: every package comes from the registry, under a licence that `deny.toml` allows, in one version.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::process::Command;

/// Packages of which two others want different versions, so that there are several.
const SEVERAL: [&str; 5] = ["foldhash", "getrandom", "hashbrown", "itertools", "syn"];

/// A package of a build with all features, or of its tests.
struct Package {
    name: String,
    version: String,
    licence: String,
    /// The path that it comes from, or the repository; empty for the registry.
    from: String,
}

fn packages() -> Vec<Package> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.args(["tree", "--locked", "--all-features", "-e", "normal,build,dev", "--prefix", "none", "--no-dedupe", "-f", "{p}|{l}"]);
    let out = cargo.output().expect("cargo runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let lines: BTreeSet<String> =
        String::from_utf8(out.stdout).expect("text").lines().filter(|l| l.contains('|')).map(str::to_owned).collect();
    let package = |line: &String| {
        let (what, licence) = line.split_once('|').expect("two parts");
        let mut words = what.replace(" (proc-macro)", "");
        let from = words.split_off(words.find(" (").unwrap_or(words.len()));
        let (name, version) = words.split_once(" v").expect("a name and a version");
        Package { name: name.into(), version: version.into(), licence: licence.into(), from }
    };
    lines.iter().map(package).filter(|p| p.name != "graphtool").collect()
}

fn allowed() -> HashSet<String> {
    let deny = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml")).expect("deny.toml");
    let list = deny.split("allow = [").nth(1).and_then(|rest| rest.split(']').next()).expect("a list of licences");
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether an SPDX expression can be satisfied: one of what `OR` (or an old `/`) joins, all of what `AND` joins.
fn satisfied(expression: &str, allowed: &HashSet<String>) -> bool {
    let plain = expression.replace('/', " OR ").replace(['(', ')'], "");
    let all = |one: &str| one.split(" OR ").any(|l| allowed.contains(l.trim()));
    plain.split(" AND ").all(all)
}

#[test]
fn licences_are_allowed() {
    let allowed = allowed();
    assert!(satisfied("(MIT OR Apache-2.0) AND Unicode-3.0", &allowed) && satisfied("Unlicense/MIT", &allowed));
    assert!(!satisfied("GPL-3.0", &allowed) && !satisfied("MIT AND GPL-3.0", &allowed) && !satisfied("", &allowed));
    let packages = packages();
    assert!(packages.len() > 50, "{} packages", packages.len());
    let wrong: Vec<String> =
        packages.iter().filter(|p| !satisfied(&p.licence, &allowed)).map(|p| format!("{} {}: {}", p.name, p.version, p.licence)).collect();
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn packages_come_from_the_registry_in_one_version() {
    let mut versions = BTreeMap::<String, Vec<String>>::new();
    for p in packages() {
        assert!(p.from.is_empty(), "{} comes from{}", p.name, p.from);
        versions.entry(p.name).or_default().push(p.version);
    }
    let twice: Vec<String> =
        versions.into_iter().filter(|(n, v)| v.len() > 1 && !SEVERAL.contains(&n.as_str())).map(|(n, v)| format!("{n} {v:?}")).collect();
    assert_eq!(twice, [""; 0]);
}
