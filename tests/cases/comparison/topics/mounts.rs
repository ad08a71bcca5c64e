//! Mounts of every kind and option.

use serde_json::{Value, json};

use crate::comparison::drive::host;
use crate::comparison::table::Group;

/// Adds a mount.
fn mount(spec: &mut Value, destination: &str, kind: &str, source: &str, options: &[&str]) {
    let mounts = spec["mounts"].as_array_mut().expect("mounts");
    mounts.push(json!({
        "destination": destination, "type": kind, "source": source, "options": options,
    }));
}

/// Adds a bind mount of something in the host's directory.
fn bind(spec: &mut Value, destination: &str, name: &str, options: &[&str]) {
    let source = host(spec, name);
    mount(spec, destination, "bind", &source, options);
}

/// Mount point, type and options without the devices' names and what a kernel adds to a tmpfs.
macro_rules! mounted {
    ($point:literal) => {
        concat!(
            "while read d p t o x; do case $p in ", $point, ") echo $p $t $(echo $o | tr , '\\n' | ",
            "grep -v -e inode64 -e lowerdir -e upperdir -e workdir -e uuid -e huge | sort);; esac; done </proc/mounts"
        )
    };
}

/// The same of a bind mount, whose file system is another in a guest.
macro_rules! bound {
    ($point:literal) => {
        concat!(
            "while read d p t o x; do case $p in ",
            $point,
            ") echo $p $(echo $o | tr , '\\n' | ",
            "grep -E '^(ro|rw|nosuid|noexec|.*atime)$' | sort);; esac; done </proc/mounts"
        )
    };
}

/// Propagation of a mount, without the groups' numbers.
macro_rules! propagation {
    ($point:literal) => {
        concat!(
            "awk '$5 == \"",
            $point,
            "\" { s = \"private\"; for (i = 7; $i != \"-\"; i++) s = s \" \" $i; ",
            "gsub(/:[0-9]+/, \"\", s); print s }' /proc/self/mountinfo"
        )
    };
}

/// The rows of every run.
pub const SHORT: &[Group] = &[
    Group::shell(
        "the defaults",
        |_| {},
        &[
            ("proc", mounted!("/proc")),
            ("sysfs", mounted!("/sys")),
            ("dev", mounted!("/dev")),
            ("terminals", mounted!("/dev/pts")),
            ("shared memory", mounted!("/dev/shm")),
            ("message queues", mounted!("/dev/mqueue")),
            ("run", mounted!("/run")),
            ("masked files", mounted!("/proc/keys|/proc/timer_list")),
            ("masked directories", mounted!("/sys/firmware")),
            ("read-only paths", mounted!("/proc/bus|/proc/fs|/proc/irq|/proc/sys|/proc/sysrq-trigger")),
            ("their order", "cut -d' ' -f2 /proc/mounts | grep -vx -e /proc/kcore -e /proc/acpi"),
            ("propagation of the root", propagation!("/")),
            ("propagation of proc", propagation!("/proc")),
            ("the root is writable", "touch /new && rm /new"),
            ("the mount table is the kernel's", "readlink /etc/mtab /proc/mounts"),
        ],
    )
    .afterwards("cd ../upper; find . | sort"),
    Group::shell(
        "tmpfs",
        |spec| {
            mount(spec, "/t1", "tmpfs", "tmpfs", &["size=1m", "mode=1770", "uid=5", "gid=6"]);
            mount(spec, "/made/up/t2", "tmpfs", "tmpfs", &["noexec", "nosuid", "nodev", "nr_inodes=20"]);
            mount(spec, "/t3", "tmpfs", "tmpfs", &["ro"]);
            mount(spec, "/t4", "tmpfs", "named", &["noatime"]);
            mount(spec, "/t5", "tmpfs", "tmpfs", &["strictatime", "sync"]);
            mount(spec, "/etc", "tmpfs", "tmpfs", &["tmpcopyup"]);
        },
        &[
            ("size, mode and owner", mounted!("/t1")),
            ("owner and mode of the directory", "stat -c '%u %g %a' /t1"),
            ("its size is a limit", "dd if=/dev/zero of=/t1/file bs=64k count=32 2>/dev/null; stat -c %s /t1/file"),
            ("flags and a place that is made", mounted!("/made/up/t2")),
            ("noexec holds", "cp /bin/busybox /made/up/t2/; /made/up/t2/busybox true; [ $? = 126 ] && echo refused"),
            ("inodes are a limit", "for i in $(seq 30); do : >/made/up/t2/$i; done; ls /made/up/t2 | wc -l"),
            ("read-only", "touch /t3/file"),
            ("read-only options", mounted!("/t3")),
            ("noatime", mounted!("/t4")),
            ("a name of its own", "grep ' /t4 ' /proc/mounts | cut -d' ' -f1"),
            ("strictatime and sync", mounted!("/t5")),
            ("tmpcopyup", "cat /etc/passwd; grep -c ' /etc tmpfs' /proc/mounts"),
            ("default mode", "stat -c '%u %g %a' /t4"),
        ],
    )
    .afterwards("cd ../upper; find . -not -path './etc*' | sort; find . -name passwd"),
    Group::shell(
        "binds",
        |spec| {
            bind(spec, "/b1", "dir", &["rbind", "rw"]);
            bind(spec, "/b2", "dir", &["rbind", "ro"]);
            bind(spec, "/deep/in/file", "file", &["bind"]);
            bind(spec, "/etc/passwd", "file", &["bind", "ro"]);
            bind(spec, "/b5", "dir", &["bind", "noexec", "nosuid", "nodev"]);
            bind(spec, "/b6", "dir", &["rbind", "noatime"]);
            bind(spec, "/b7", "dir", &["bind", "rro"]);
            bind(spec, "/b8/../b9", "dir", &["bind"]);
            mount(spec, "/var/back", "", "/proc/self", &["bind"]);
        },
        &[
            ("contents", "cat /b1/inner"),
            ("is writable", "echo changed >/b1/new; cat /b1/new"),
            ("read-only", "echo x >/b2/inner"),
            ("read-only options", bound!("/b2")),
            ("the same directory twice", "cat /b2/new"),
            ("a file", "cat /deep/in/file; [ -f /deep/in/file ] && echo file"),
            ("a file over a file", "cat /etc/passwd; echo x >>/etc/passwd"),
            ("flags", bound!("/b5")),
            ("noexec holds", "cp /bin/busybox /b5/; /b5/busybox true; [ $? = 126 ] && echo refused"),
            ("noatime", bound!("/b6")),
            ("recursively read-only", bound!("/b7")),
            ("dots in the destination", "cat /b9/inner"),
            ("owners", "stat -c '%u %g %a' /b1/inner"),
            ("owners can be changed", "chown 7:8 /b1/new; chmod 4711 /b1/new; stat -c '%u %g %a' /b1/new"),
            ("links", "ln /b1/inner /b1/hard; ln -s inner /b1/soft; stat -c %h /b1/inner; readlink /b1/soft"),
            ("a fifo", "mkfifo /b1/fifo; (echo through >/b1/fifo &); cat /b1/fifo"),
            ("renaming", "mv /b1/hard /b1/moved; ls /b1 | sort"),
            ("no renaming across mounts", "mv /b1/moved /tmp/moved; ls /tmp"),
            ("a socket", "timeout 60 nc -l -U /b1/socket & for i in $(seq 30); do [ -S /b1/socket ] && break; sleep 0.3; done; [ -S /b1/socket ] && echo socket"),
            ("a long name", "touch /b1/$(printf '%0255d' 0) && ls /b1 | grep -c 00000; touch /b1/$(printf '%0256d' 0)"),
            ("times", "touch -d '2001-02-03 04:05:06' /b1/new; stat -c %Y /b1/new"),
            ("truncating", "truncate -s 100000 /b1/new; stat -c %s /b1/new"),
            ("appending", "echo one >/b1/log; echo two >>/b1/log; cat /b1/log"),
            ("an extended attribute of a user", "[ -x /bin/setfattr ] && setfattr -n user.x -v y /b1/inner; echo done"),
        ],
    )
    .afterwards("cd dir; stat -c '%n %u %g %a %s %h' inner new log | sort; cat log; rm busybox; ls | cut -c1-20 | sort"),
    Group::shell(
        "a read-only root",
        |spec| {
            spec["root"]["readonly"] = json!(true);
            mount(spec, "/tmp", "tmpfs", "tmpfs", &["mode=1777"]);
        },
        &[
            ("refuses a new file", "touch /new"),
            ("refuses a change", "echo >>/etc/passwd"),
            ("refuses removal", "rm /etc/group"),
            ("allows the volumes", "echo fine >/tmp/f; cat /tmp/f"),
            ("dev is writable", "touch /dev/file && echo written"),
            ("run is writable", "touch /run/file && echo written"),
            ("options", bound!("/")),
        ],
    ),
    Group::shell(
        "masked and read-only paths",
        |spec| {
            spec["linux"]["maskedPaths"] = json!(["/etc/group", "/var", "/no/such/path", "/proc/uptime"]);
            spec["linux"]["readonlyPaths"] = json!(["/tmp", "/etc/passwd", "/no/such/path", "/dev/shm"]);
        },
        &[
            ("a masked file is empty", "wc -c </etc/group"),
            ("a masked file is null", "stat -L -c '%t %T' /etc/group"),
            ("a masked file of proc", "cat /proc/uptime"),
            ("a masked directory is empty", "ls -A /var; touch /var/file"),
            ("a path that is not there is not made", "ls /no"),
            ("a read-only directory", "touch /tmp/file"),
            ("a read-only file", "echo >>/etc/passwd"),
            ("a read-only mount", "touch /dev/shm/file"),
            ("what is no longer masked", "head -c 1 /proc/timer_list | wc -c"),
            ("what is no longer read-only", mounted!("/proc/sys")),
        ],
    ),
];

/// The rows that only a full run has time for.
pub const FULL: &[Group] = &[
    Group::shell(
        "destinations that are links",
        |spec| {
            let root = spec["root"]["path"].as_str().unwrap_or_default().to_owned();
            for (target, link) in [("/inside", "absolute"), ("../../../etc", "escaping")] {
                std::os::unix::fs::symlink(target, format!("{root}/{link}")).expect("a link");
            }
            bind(spec, "/absolute", "dir", &["bind"]);
            bind(spec, "/escaping/sub", "dir", &["bind"]);
        },
        &[
            ("an absolute one leads inside", "cat /inside/inner"),
            ("one that climbs stays inside", "cat /etc/sub/inner"),
        ],
    )
    .afterwards("ls ../rootfs /etc/sub 2>&1 | grep -v cannot | sort; [ ! -e /etc/sub ]"),
    Group::shell(
        "kernel file systems",
        |spec| {
            mount(spec, "/q", "mqueue", "mqueue", &["nosuid"]);
            mount(
                spec,
                "/pts",
                "devpts",
                "devpts",
                &["newinstance", "ptmxmode=0600", "mode=0600", "gid=7"],
            );
            mount(spec, "/p", "proc", "proc", &["ro"]);
            mount(
                spec,
                "/s",
                "sysfs",
                "sysfs",
                &["ro", "nosuid", "noexec", "nodev"],
            );
            mount(
                spec,
                "/sys/fs/cgroup",
                "cgroup",
                "cgroup",
                &["nosuid", "noexec", "nodev", "relatime", "ro"],
            );
        },
        &[
            ("message queues", mounted!("/q")),
            ("terminals", mounted!("/pts")),
            ("a second proc", mounted!("/p")),
            ("a second sysfs", mounted!("/s")),
            ("cgroups", mounted!("/sys/fs/cgroup")),
            ("cgroups are read-only", "mkdir /sys/fs/cgroup/mine"),
            (
                "the cgroup's files",
                "ls /sys/fs/cgroup | grep -E '^(cgroup\\.procs|cgroup\\.events|memory\\.max|pids\\.max|cpu\\.max)$'",
            ),
            (
                "this process is in it",
                "grep -q . /sys/fs/cgroup/cgroup.procs && echo yes",
            ),
        ],
    ),
    Group::shell(
        "a shared root",
        |spec| {
            spec["linux"]["rootfsPropagation"] = json!("shared");
            bind(spec, "/b1", "dir", &["rbind", "rshared"]);
            bind(spec, "/b2", "dir", &["rbind", "rslave"]);
            bind(spec, "/b3", "dir", &["rbind", "rprivate"]);
            bind(spec, "/b4", "dir", &["rbind", "unbindable"]);
        },
        &[
            ("root", propagation!("/")),
            ("shared", propagation!("/b1")),
            ("slave", propagation!("/b2")),
            ("private", propagation!("/b3")),
            ("unbindable", propagation!("/b4")),
        ],
    ),
    Group::shell(
        "a slave root",
        |spec| spec["linux"]["rootfsPropagation"] = json!("rslave"),
        &[("root", propagation!("/")), ("proc", propagation!("/proc"))],
    ),
    Group::shell(
        "a private root",
        |spec| spec["linux"]["rootfsPropagation"] = json!("private"),
        &[("root", propagation!("/")), ("proc", propagation!("/proc"))],
    ),
];
