use serde_json::{Value, json};

use super::syscalls::{AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, X32_BIT};
use super::*;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_THREAD;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

fn plan(profile: &Value) -> Result<Option<Filter>, SpecError> {
    Filter::plan(&serde_json::from_value(profile.clone()).unwrap())
}

fn filter(profile: Value) -> Filter {
    plan(&profile).unwrap().unwrap()
}

/// Runs the program as the kernel would (Documentation/networking/filter.rst).
fn run(filter: &Filter, architecture: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = vec![number, architecture, 0, 0];
    data.extend(
        args.iter()
            .flat_map(|arg| [*arg as u32, (*arg >> 32) as u32]),
    );
    let (mut accumulator, mut at) = (0, 0);
    loop {
        let Instruction {
            code,
            jump_true,
            jump_false,
            k,
        } = filter.program[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { jump_true } else { jump_false });
        match code {
            0x20 => accumulator = data[k as usize / 4],
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += jump(accumulator == k),
            0x25 => at += jump(accumulator > k),
            0x35 => at += jump(accumulator >= k),
            0x06 => return k,
            other => panic!("instruction {other:#x} at {}", at - 1),
        }
    }
}

fn run64(filter: &Filter, number: libc::c_long, args: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    run(filter, AUDIT_ARCH_X86_64, number as u32, all)
}

#[test]
fn a_profile_without_anything_is_none() {
    assert_eq!(plan(&json!({})).unwrap(), None);
    assert_eq!(plan(&json!({ "architectures": null })).unwrap(), None);
}

#[test]
fn every_action_has_its_value() {
    for (action, errno, expected) in [
        ("SCMP_ACT_KILL", None, 0),
        ("SCMP_ACT_KILL_THREAD", None, 0),
        ("SCMP_ACT_KILL_PROCESS", None, 0x8000_0000),
        ("SCMP_ACT_TRAP", None, 0x0003_0000),
        ("SCMP_ACT_ERRNO", None, 0x0005_0001),
        ("SCMP_ACT_ERRNO", Some(95), 0x0005_005f),
        ("SCMP_ACT_ERRNO", Some(0), 0x0005_0000),
        ("SCMP_ACT_TRACE", Some(7), 0x7ff0_0007),
        ("SCMP_ACT_LOG", None, 0x7ffc_0000),
    ] {
        let rule = json!({ "names": ["getpid"], "action": action, "errnoRet": errno });
        let filter =
            filter(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule.clone()] }));
        assert_eq!(run64(&filter, libc::SYS_getpid, &[]), expected, "{rule}");
        assert_eq!(run64(&filter, libc::SYS_getppid, &[]), ALLOW, "{rule}");
    }
}

#[test]
fn the_default_error_can_be_chosen() {
    let filter = filter(
        json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 95,
        "syscalls": [{ "names": ["read", "mseal"], "action": "SCMP_ACT_ALLOW" }] }),
    );
    assert_eq!(run64(&filter, libc::SYS_read, &[]), ALLOW);
    assert_eq!(run64(&filter, libc::SYS_write, &[]), 0x0005_0000 | 95);
}

#[test]
fn comparisons_are_unsigned_and_of_64_bits() {
    let big = 0x8000_0001_0000_0005_u64;
    let around = [
        0,
        4,
        5,
        6,
        big - 1,
        big,
        big + 1,
        big & 0xffff_ffff,
        big + (1 << 32),
        big - (1 << 32),
        big - (1 << 32) + 1,
        big + (1 << 32) - 1,
        u64::MAX,
    ];
    for value in [5, big, 0, u64::MAX] {
        for (op, holds) in [
            ("SCMP_CMP_NE", (|a, b| a != b) as fn(u64, u64) -> bool),
            ("SCMP_CMP_LT", |a, b| a < b),
            ("SCMP_CMP_LE", |a, b| a <= b),
            ("SCMP_CMP_EQ", |a, b| a == b),
            ("SCMP_CMP_GE", |a, b| a >= b),
            ("SCMP_CMP_GT", |a, b| a > b),
        ] {
            for index in [0, 5] {
                let filter = filter(json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
                    { "names": ["ioctl"], "action": "SCMP_ACT_ALLOW",
                      "args": [{ "index": index, "value": value, "op": op }] }] }));
                for given in around {
                    let mut args = [7; 6];
                    args[index] = given;
                    let expected = if holds(given, value) { ALLOW } else { EPERM };
                    let found = run64(&filter, libc::SYS_ioctl, &args);
                    assert_eq!(found, expected, "{given:#x} {op} {value:#x} at {index}");
                }
            }
        }
    }
}

#[test]
fn a_mask_hides_bits_of_both_sides() {
    let mask = 0x7e02_0000_0000_ff00_u64;
    let filter = filter(json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        { "names": ["clone"], "action": "SCMP_ACT_ALLOW",
          "args": [{ "index": 0, "value": mask, "valueTwo": 0x1234, "op": "SCMP_CMP_MASKED_EQ" }] }] }));
    for (given, expected) in [
        (0x1200, ALLOW),
        (0x12ff, ALLOW),
        (0x8100_0000_0000_1200, ALLOW),
        (0x0002_0000_0000_1200, EPERM),
        (0x1300, EPERM),
    ] {
        assert_eq!(
            run64(&filter, libc::SYS_clone, &[given]),
            expected,
            "{given:#x}"
        );
    }
}

#[test]
fn conditions_are_anded_and_rules_are_ored() {
    let equal =
        |index: u32, value: u64| json!({ "index": index, "value": value, "op": "SCMP_CMP_EQ" });
    let filter = filter(json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        { "names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [equal(0, 2), equal(1, 1)] },
        { "names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [equal(0, 1)] },
        { "names": ["socket"], "action": "SCMP_ACT_KILL", "args": [equal(0, 17)] },
        // Two of the same argument: either one.
        { "names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [equal(0, 0), equal(0, 8)] },
    ] }));
    for (args, expected) in [
        ([2, 1], ALLOW),
        ([2, 2], EPERM),
        ([1, 9], ALLOW),
        ([17, 1], KILL),
        ([16, 1], EPERM),
    ] {
        assert_eq!(
            run64(&filter, libc::SYS_socket, &args),
            expected,
            "{args:?}"
        );
    }
    for (domain, expected) in [(0, ALLOW), (8, ALLOW), (4, EPERM)] {
        assert_eq!(run64(&filter, libc::SYS_personality, &[domain]), expected);
    }
}

#[test]
fn a_rule_without_conditions_overrides_those_with() {
    for order in [[0, 1], [1, 0]] {
        let rules = [
            json!({ "names": ["socket"], "action": "SCMP_ACT_ALLOW" }),
            json!({ "names": ["socket"], "action": "SCMP_ACT_KILL",
                "args": [{ "index": 0, "value": 1, "op": "SCMP_CMP_EQ" }] }),
        ];
        let rules = order.map(|index| rules[index].clone());
        let filter = filter(json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules }));
        assert_eq!(run64(&filter, libc::SYS_socket, &[1]), ALLOW);
    }
    // Among those without conditions the first one counts.
    let filter = filter(json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        { "names": ["socket"], "action": "SCMP_ACT_LOG" },
        { "names": ["socket"], "action": "SCMP_ACT_ALLOW" }] }));
    assert_eq!(run64(&filter, libc::SYS_socket, &[]), libc::SECCOMP_RET_LOG);
}

#[test]
fn calls_newer_than_the_profile_do_not_exist() {
    let rules = json!([
        { "names": ["read", "no_such_call", "clone3"], "action": "SCMP_ACT_ALLOW" },
        // Skipped as a rule, but the profile knows it.
        { "names": ["openat2"], "action": "SCMP_ACT_ERRNO" },
    ]);
    let strict = filter(json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules }));
    assert_eq!(run64(&strict, libc::SYS_clone3, &[]), ALLOW);
    assert_eq!(run64(&strict, libc::SYS_openat2, &[]), EPERM);
    assert_eq!(run64(&strict, libc::SYS_openat2 + 1, &[]), ENOSYS);
    assert_eq!(run64(&strict, 100_000, &[]), ENOSYS);
    // The number of a call that a tracer skips.
    assert_eq!(run64(&strict, -1, &[]), EPERM);
    for lenient in ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"] {
        let rules = json!([{ "names": ["read"], "action": "SCMP_ACT_KILL" }]);
        let filter = filter(json!({ "defaultAction": lenient, "syscalls": rules }));
        assert_ne!(run64(&filter, 100_000, &[]), ENOSYS, "{lenient}");
    }
}

#[test]
fn an_architecture_not_listed_is_fatal() {
    let rules = json!([{ "names": ["read", "write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5 }]);
    let profile = |architectures: Value| {
        filter(
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures, "syscalls": rules }),
        )
    };
    let eio = libc::SECCOMP_RET_ERRNO | libc::EIO as u32;
    let read64 = libc::SYS_read as u32;
    for (architectures, of_x86, of_x32) in [
        (json!([]), KILL, KILL),
        (json!(["SCMP_ARCH_AARCH64"]), KILL, KILL),
        (json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]), eio, KILL),
        (
            json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
            eio,
            eio,
        ),
    ] {
        let filter = profile(architectures);
        assert_eq!(run(&filter, AUDIT_ARCH_X86_64, read64, [0; 6]), eio);
        assert_eq!(run(&filter, AUDIT_ARCH_I386, 3, [0; 6]), of_x86);
        assert_eq!(
            run(&filter, AUDIT_ARCH_X86_64, read64 | X32_BIT, [0; 6]),
            of_x32
        );
        // 64-bit ARM.
        assert_eq!(run(&filter, 0xc000_00b7, 63, [0; 6]), KILL);
        assert_eq!(run(&filter, AUDIT_ARCH_X86_64, u32::MAX, [0; 6]), ALLOW);
    }
}

#[test]
fn rules_reach_the_sub_calls_of_32_bit_programs() {
    let filter = filter(
        json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "syscalls": [
        { "names": ["socket"], "action": "SCMP_ACT_ERRNO",
          "args": [{ "index": 0, "value": 40, "op": "SCMP_CMP_EQ" }] },
        { "names": ["semop"], "action": "SCMP_ACT_KILL" },
    ] }),
    );
    let run = |number, args| run(&filter, AUDIT_ARCH_I386, number, args);
    assert_eq!(run(359, [40, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(run(359, [2, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(run(102, [1, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(run(102, [2, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(run(117, [1, 0, 0, 0, 0, 0]), KILL);
    assert_eq!(run(117, [2, 0, 0, 0, 0, 0]), ALLOW);
}

/// A profile of the size and shape engines ship: everything allowed by name, some
/// calls by their arguments, three architectures.
fn large_profile() -> Value {
    let held_back = ["bpf", "kexec_load", "mount", "socket", "clone", "clone3"];
    let names: Vec<&str> = ::syscalls::x86_64::Sysno::iter()
        .map(|call| call.name())
        .filter(|name| !held_back.contains(name))
        .collect();
    json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            { "names": names, "action": "SCMP_ACT_ALLOW" },
            { "names": ["socket"], "action": "SCMP_ACT_ALLOW",
              "args": [{ "index": 0, "value": 40, "op": "SCMP_CMP_NE" }] },
            { "names": ["clone"], "action": "SCMP_ACT_ALLOW",
              "args": [{ "index": 0, "value": 0x7e02_0000_u64, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }] },
            { "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
        ],
    })
}

#[test]
fn a_large_profile_gives_each_call_its_action() {
    let filter = filter(large_profile());
    for call in ::syscalls::x86_64::Sysno::iter() {
        let expected = match call.name() {
            "bpf" | "kexec_load" | "mount" => EPERM,
            "clone3" => ENOSYS,
            _ => ALLOW,
        };
        let number = call.id() as u32;
        for number in [number, number | X32_BIT] {
            let found = run(&filter, AUDIT_ARCH_X86_64, number, [0; 6]);
            assert_eq!(found, expected, "{call} {number:#x}");
        }
    }
    assert_eq!(run64(&filter, libc::SYS_socket, &[40]), EPERM);
    assert_eq!(run64(&filter, libc::SYS_clone, &[0x1000_0000]), EPERM);
    assert!(filter.program.len() < 400, "{}", filter.program.len());
}

#[test]
fn far_jumps_reach_their_targets() {
    // Alternating actions and conditions: nothing can be merged.
    let rules: Vec<Value> = ::syscalls::x86_64::Sysno::iter()
        .map(|call| {
            json!({ "names": [call.name()], "action": "SCMP_ACT_ERRNO", "errnoRet": 100 + call.id(),
                "args": [{ "index": 1, "value": call.id(), "op": "SCMP_CMP_EQ" }] })
        })
        .collect();
    let filter = filter(json!({ "defaultAction": "SCMP_ACT_TRAP", "syscalls": rules }));
    assert!(filter.program.len() > 1000);
    for call in ::syscalls::x86_64::Sysno::iter() {
        let number = call.id();
        let action = libc::SECCOMP_RET_ERRNO | (100 + number) as u32;
        let found = run64(&filter, number.into(), &[0, number as u64]);
        assert_eq!(found, action, "{call}");
        let found = run64(&filter, number.into(), &[0, 1 << 32]);
        assert_eq!(found, libc::SECCOMP_RET_TRAP, "{call}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let base = json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "flags": [],
        "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_ERRNO",
            "args": [{ "index": 0, "value": 1, "op": "SCMP_CMP_EQ" }] }] });
    assert!(plan(&base).is_ok());
    for (pointer, value, expected) in [
        (
            "/defaultAction",
            json!("ALLOW"),
            "linux.seccomp.defaultAction",
        ),
        (
            "/defaultAction",
            json!("SCMP_ACT_NOTIFY"),
            "linux.seccomp.defaultAction, SCMP_ACT_NOTIFY",
        ),
        (
            "/architectures/0",
            json!("SCMP_ARCH_PDP11"),
            "linux.seccomp.architectures",
        ),
        (
            "/flags",
            json!(["SECCOMP_FILTER_FLAG_NEW_LISTENER"]),
            "linux.seccomp.flags",
        ),
        (
            "/syscalls/0/action",
            json!("SCMP_ACT_NOTIFY"),
            "linux.seccomp.syscalls[0].action, SCMP_ACT_NOTIFY",
        ),
        (
            "/syscalls/0/action",
            json!("SCMP_ACT_X"),
            "linux.seccomp.syscalls[0].action",
        ),
        (
            "/syscalls/0/names",
            json!(["read", ""]),
            "linux.seccomp.syscalls[0].names",
        ),
        (
            "/syscalls/0/args/0/index",
            json!(6),
            "linux.seccomp.syscalls[0].args.index",
        ),
        (
            "/syscalls/0/args/0/op",
            json!("EQ"),
            "linux.seccomp.syscalls[0].args.op",
        ),
    ] {
        let mut profile = base.clone();
        *profile.pointer_mut(pointer).unwrap() = value;
        let error = plan(&profile).unwrap_err().to_string();
        assert!(error.contains(expected), "{pointer}: {error}");
    }
}

#[test]
fn flags_are_those_of_the_kernel() {
    let flags = json!([
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW"
    ]);
    let filter = filter(json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": flags }));
    assert_eq!(filter.flags, 0b110);
}

#[test]
fn the_kernel_enforces_a_loaded_filter() {
    let filter = filter(large_profile());
    // A filter holds for the thread that loads it.
    let thread = std::thread::spawn(move || {
        capctl::prctl::set_no_new_privs().unwrap();
        filter.load().unwrap();
        let socket = |family| {
            nix::sys::socket::socket(
                family,
                nix::sys::socket::SockType::Stream,
                nix::sys::socket::SockFlag::empty(),
                None,
            )
            .map(drop)
        };
        let vsock = socket(nix::sys::socket::AddressFamily::Vsock);
        let unix = socket(nix::sys::socket::AddressFamily::Unix);
        let mount = nix::mount::mount(
            None::<&str>,
            "/",
            None::<&str>,
            nix::mount::MsFlags::MS_REMOUNT,
            None::<&str>,
        );
        (vsock, unix, mount)
    });
    let (vsock, unix, mount) = thread.join().unwrap();
    assert_eq!(vsock, Err(nix::errno::Errno::EPERM));
    assert_eq!(unix, Ok(()));
    assert_eq!(mount, Err(nix::errno::Errno::EPERM));
}
