//! Containers that cannot be made: why, in words of the same class.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::comparison::drive::host;
use crate::comparison::table::Group;

/// Puts a file into the root.
fn file(spec: &Value, name: &str, contents: &str, mode: u32) {
    let path = format!(
        "{}/{name}",
        spec["root"]["path"].as_str().unwrap_or_default()
    );
    fs::write(&path, contents).expect("a file");
    fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("its mode");
}

/// Adds a mount.
fn mount(spec: &mut Value, mount: Value) {
    spec["mounts"].as_array_mut().expect("mounts").push(mount);
}

/// The rows of every run.
pub const SHORT: &[Group] = &[
    Group::command("a program that is not there", |_| {}, &["/no/such/program"]),
    Group::command(
        "a program that is not on the path",
        |_| {},
        &["no-such-program"],
    ),
    Group::command("a directory as program", |_| {}, &["/etc"]),
    Group::command("a file without the right to run", |_| {}, &["/etc/passwd"]),
    Group::command(
        "a script whose interpreter is not there",
        |spec| file(spec, "bin/script", "#!/no/such/interpreter\n", 0o755),
        &["/bin/script"],
    ),
    Group::command(
        "a working directory that is a file",
        |spec| spec["process"]["cwd"] = json!("/etc/passwd"),
        &["true"],
    ),
    Group::command(
        "a bind mount of nothing",
        |spec| {
            mount(
                spec,
                json!({ "destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"] }),
            )
        },
        &["true"],
    ),
    Group::command(
        "a file system that does not exist",
        |spec| {
            mount(
                spec,
                json!({ "destination": "/x", "type": "nosuchfs", "source": "none" }),
            )
        },
        &["true"],
    ),
];

/// The rows that only a full run has time for.
pub const FULL: &[Group] = &[
    Group::command("a program in a file", |_| {}, &["/etc/passwd/program"]),
    Group::command(
        "a file that is no program",
        |spec| file(spec, "bin/garbage", "\u{7f}ELF and nothing more", 0o755),
        &["garbage"],
    ),
    Group::command(
        "an empty program",
        |spec| file(spec, "bin/empty", "", 0o755),
        &["/bin/empty"],
    ),
    Group::command(
        "a script without an interpreter",
        |spec| file(spec, "bin/script", "echo hello\n", 0o755),
        &["/bin/script"],
    ),
    Group::command(
        "a program on the path without the right to run",
        |spec| file(spec, "bin/closed", "#!/bin/sh\n", 0o644),
        &["closed"],
    ),
    Group::command(
        "a program that its user may not run",
        |spec| {
            file(spec, "bin/mine", "#!/bin/sh\n", 0o700);
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        },
        &["/bin/mine"],
    ),
    Group::command("no command", |_| {}, &[]),
    Group::command("an empty command", |_| {}, &[""]),
    Group::command(
        "an argument that is too long",
        |spec| spec["process"]["args"] = json!(["/bin/true", "x".repeat(200_000)]),
        &[],
    ),
    Group::command(
        "a working directory below a file",
        |spec| spec["process"]["cwd"] = json!("/etc/passwd/sub"),
        &["true"],
    ),
    Group::command(
        "a working directory that is relative",
        |spec| spec["process"]["cwd"] = json!("etc"),
        &["true"],
    ),
    Group::command(
        "no working directory",
        |spec| spec["process"]["cwd"] = json!(""),
        &["true"],
    ),
    Group::command(
        "a working directory the user may not enter",
        |spec| {
            let root = format!("{}/root", spec["root"]["path"].as_str().unwrap_or_default());
            fs::set_permissions(root, PermissionsExt::from_mode(0o700)).expect("its mode");
            spec["process"]["cwd"] = json!("/root");
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        },
        &["/bin/true"],
    ),
    Group::command(
        "a root that is not there",
        |spec| spec["root"]["path"] = json!("/no/such/root"),
        &["true"],
    ),
    Group::command(
        "a root that is a file",
        |spec| spec["root"]["path"] = json!(host(spec, "file")),
        &["true"],
    ),
    Group::command(
        "a file bound over a directory",
        |spec| {
            mount(
                spec,
                json!({ "destination": "/etc", "type": "bind", "source": host(spec, "file"), "options": ["bind"] }),
            )
        },
        &["true"],
    ),
    Group::command(
        "a directory bound over a file",
        |spec| {
            mount(
                spec,
                json!({ "destination": "/etc/passwd", "type": "bind", "source": host(spec, "dir"), "options": ["bind"] }),
            )
        },
        &["true"],
    ),
    Group::command(
        "a mount below a file",
        |spec| {
            mount(
                spec,
                json!({ "destination": "/etc/passwd/x", "type": "tmpfs", "source": "tmpfs" }),
            )
        },
        &["true"],
    ),
    Group::command(
        "an option that the file system does not know",
        |spec| {
            mount(
                spec,
                json!({ "destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["no_such_option"] }),
            )
        },
        &["true"],
    ),
    Group::command(
        "a mount without a destination",
        |spec| {
            mount(
                spec,
                json!({ "destination": "", "type": "tmpfs", "source": "tmpfs" }),
            )
        },
        &["true"],
    ),
    Group::shell(
        "a destination that is relative",
        |spec| {
            mount(
                spec,
                json!({ "destination": "relative/place", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"] }),
            )
        },
        &[(
            "is below the root",
            "grep -c ' /relative/place tmpfs' /proc/mounts",
        )],
    ),
    Group::command(
        "a tmpfs over proc",
        |spec| {
            mount(
                spec,
                json!({ "destination": "/proc/sys", "type": "tmpfs", "source": "tmpfs" }),
            )
        },
        &["true"],
    ),
    Group::command(
        "a propagation that does not exist",
        |spec| spec["linux"]["rootfsPropagation"] = json!("sideways"),
        &["true"],
    ),
    Group::command(
        "a masked path that is relative",
        |spec| spec["linux"]["maskedPaths"] = json!(["etc/passwd"]),
        &["true"],
    ),
    Group::command(
        "a read-only path that is a link",
        |spec| {
            let root = spec["root"]["path"].as_str().unwrap_or_default().to_owned();
            std::os::unix::fs::symlink("/etc", format!("{root}/link")).expect("a link");
            spec["linux"]["readonlyPaths"] = json!(["/link"]);
        },
        &["sh", "-c", "touch /etc/x; echo $?"],
    ),
    Group::command(
        "a spec without a version",
        |spec| {
            spec.as_object_mut().map(|spec| spec.remove("ociVersion"));
        },
        &["true"],
    ),
    Group::command(
        "a spec without a linux section",
        |spec| {
            spec.as_object_mut().map(|spec| spec.remove("linux"));
        },
        &["true"],
    ),
    Group::command(
        "a user with a negative number",
        |spec| spec["process"]["user"] = json!({ "uid": 4_294_967_295_u32, "gid": 0 }),
        &["id", "-u"],
    ),
    Group::command(
        "a class of scheduling that does not exist",
        |spec| spec["linux"]["personality"] = json!({ "domain": "PLAN9" }),
        &["true"],
    ),
];
