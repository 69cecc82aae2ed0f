//! Checks the manifests of conf/kubernetes: field names as in the API, and valid settings. Needs no
//! cluster.

use std::path::Path;
use std::process::Command;

use super::cases;
use crate::lab::{BINARY, Lab};

cases!("kubernetes":
    #[Python("jsonschema", "python3-jsonschema")] #[Python("yaml", "python3-yaml")]
    manifests_and_embedded_settings_are_valid,
    #[Python("jsonschema", "python3-jsonschema")] #[Python("yaml", "python3-yaml")]
    invalid_manifest_is_rejected,
);

fn check(manifests: &[&Path]) -> Result<Vec<String>, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = Command::new("/usr/bin/python3")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(root.join("tests/kubernetes/check.py"))
        .args(manifests)
        .output()
        .expect("python3");
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned());
    }
    let lines = String::from_utf8_lossy(&out.stdout).into_owned();
    let settings = lines.lines().map(serde_json::from_str);
    settings
        .collect::<Result<_, _>>()
        .map_err(|e| e.to_string())
}

fn manifest(name: &str) -> std::path::PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("conf/kubernetes").join(name)
}

fn manifests_and_embedded_settings_are_valid(lab: &Lab) {
    let files = ["sidecar.yml", "daemonset.yml", "podmonitor.yml"].map(manifest);
    let files: Vec<&Path> = files.iter().map(|f| f.as_path()).collect();
    let settings = check(&files).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(settings.len(), 2);
    // The capabilities for forwarding in the kernel.
    let good = std::fs::read_to_string(manifest("daemonset.yml")).expect("the manifest");
    let more = good.replace("add: [NET_RAW]", "add: [NET_RAW, NET_ADMIN, BPF, PERFMON]");
    assert_ne!(more, good);
    let file = lab.file("more.yml");
    std::fs::write(&file, more).expect("writing a manifest");
    check(&[&file]).unwrap_or_else(|e| panic!("{e}"));
    for text in settings {
        let file = lab.file("mcastor.toml");
        std::fs::write(&file, text).expect("writing settings");
        let out = Command::new(BINARY).arg("check").arg(&file).output();
        let out = out.expect("mcastor check");
        let printed = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{printed}");
    }
}

fn invalid_manifest_is_rejected(lab: &Lab) {
    let good = std::fs::read_to_string(manifest("daemonset.yml")).expect("the manifest");
    for (from, to) in [
        ("hostNetwork: true", "hostNetworks: true"),
        (
            "path: /healthz, port: metrics",
            "path: /healthz, port: metric",
        ),
        ("add: [NET_RAW]", "add: [CAP_NET_RAW]"),
        ("{ name: run, mountPath", "{ name: ran, mountPath"),
        (
            "matchLabels: { app: mcastor }",
            "matchLabels: { app: other }",
        ),
        ("prometheus.io/port: \"9464\"", "prometheus.io/port: 9464"),
        ("readOnlyRootFilesystem: true", "privileged: true"),
    ] {
        let invalid = good.replace(from, to);
        assert_ne!(invalid, good, "{from} is not in the manifest");
        let file = lab.file("invalid.yml");
        std::fs::write(&file, invalid).expect("writing a manifest");
        assert!(
            check(&[&file]).is_err(),
            "{from} replaced by {to} was accepted"
        );
    }
}
