use serde_json::{Value, json};

use super::program::{
    AND_K, EXIT, JUMP_EQUAL_K, JUMP_NOT_EQUAL_K, JUMP_NOT_EQUAL_X, LOAD_WORD, MOVE_K, MOVE_X,
    SHIFT_RIGHT_K,
};
use super::*;

const READ_WRITE: u32 = Access::READ.0 | Access::WRITE.0;

fn plan(rules: &Value, devices: &Value) -> Result<DeviceFilter, SpecError> {
    let rules: Vec<DeviceRule> = serde_json::from_value(rules.clone()).unwrap();
    let devices: Vec<Device> = serde_json::from_value(devices.clone()).unwrap();
    DeviceFilter::plan(&rules, &devices)
}

/// Runs the program as the kernel would; what it does not know here is a failed test.
fn decide(filter: &DeviceFilter, kind: u32, major: u32, minor: u32, access: u32) -> bool {
    let ctx = [access << 16 | kind, major, minor];
    let mut registers = [0_u32; 6];
    let mut next = 0;
    loop {
        let [opcode, pair, low, high, a, b, c, d] = filter.instructions()[next].to_le_bytes();
        let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
        let offset = usize::try_from(i16::from_le_bytes([low, high])).unwrap();
        let immediate = u32::from_le_bytes([a, b, c, d]);
        next += 1;
        match opcode {
            LOAD_WORD => registers[to] = ctx[offset / 4],
            AND_K => registers[to] &= immediate,
            SHIFT_RIGHT_K => registers[to] >>= immediate,
            MOVE_K => registers[to] = immediate,
            MOVE_X => registers[to] = registers[from],
            JUMP_EQUAL_K if registers[to] == immediate => next += offset,
            JUMP_NOT_EQUAL_K if registers[to] != immediate => next += offset,
            JUMP_NOT_EQUAL_X if registers[to] != registers[from] => next += offset,
            JUMP_EQUAL_K | JUMP_NOT_EQUAL_K | JUMP_NOT_EQUAL_X => {}
            EXIT => return registers[0] != 0,
            other => panic!("opcode {other:#x}"),
        }
    }
}

fn char_access(filter: &DeviceFilter, major: u32, minor: u32, access: u32) -> bool {
    decide(filter, 2, major, minor, access)
}

fn block_access(filter: &DeviceFilter, major: u32, minor: u32, access: u32) -> bool {
    decide(filter, 1, major, minor, access)
}

#[test]
fn without_rules_only_the_standard_devices_may_be_used() {
    for rules in [json!([]), json!([{ "allow": false, "access": "rwm" }])] {
        let filter = plan(&rules, &json!([])).unwrap();
        for (major, minor) in [
            (1, 3),
            (1, 5),
            (1, 7),
            (1, 8),
            (1, 9),
            (5, 0),
            (5, 2),
            (136, 42),
        ] {
            assert!(
                char_access(&filter, major, minor, READ_WRITE),
                "{major}:{minor}"
            );
            assert!(
                !block_access(&filter, major, minor, Access::READ.0),
                "{major}:{minor}"
            );
        }
        for (major, minor) in [(1, 11), (5, 1), (10, 232)] {
            assert!(
                !char_access(&filter, major, minor, Access::READ.0),
                "{major}:{minor}"
            );
            assert!(
                char_access(&filter, major, minor, Access::MKNOD.0),
                "{major}:{minor}"
            );
        }
        assert!(!block_access(&filter, 8, 0, Access::READ.0));
        assert!(block_access(&filter, 8, 0, Access::MKNOD.0));
    }
}

#[test]
fn a_rule_allows_what_it_lists_and_no_more() {
    let rules = json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "r" },
        { "allow": true, "type": "b", "major": 8, "access": "rw" },
    ]);
    let filter = plan(&rules, &json!([])).unwrap();
    assert!(char_access(&filter, 1, 11, Access::READ.0));
    assert!(!char_access(&filter, 1, 11, READ_WRITE));
    assert!(!char_access(&filter, 1, 11, Access::WRITE.0));
    assert!(block_access(&filter, 8, 77, READ_WRITE));
    assert!(!block_access(&filter, 9, 0, READ_WRITE));
    assert!(!char_access(&filter, 8, 77, READ_WRITE));
}

#[test]
fn a_privileged_container_may_use_everything() {
    let filter = plan(&json!([{ "allow": true, "access": "rwm" }]), &json!([])).unwrap();
    assert!(char_access(&filter, 10, 232, Access::ALL.0));
    assert!(block_access(&filter, 8, 0, Access::ALL.0));
    // The largest numbers: an immediate must not be taken for a negative one.
    assert!(char_access(&filter, u32::MAX, u32::MAX, Access::ALL.0));
}

#[test]
fn large_numbers_are_compared_as_such() {
    let rules = json!([{ "allow": true, "type": "c", "major": 4_294_967_295_u32, "minor": 0, "access": "rw" }]);
    let filter = plan(&rules, &json!([])).unwrap();
    assert!(char_access(&filter, u32::MAX, 0, READ_WRITE));
    assert!(!char_access(&filter, u32::MAX - 1, 0, READ_WRITE));
}

#[test]
fn an_exception_from_everything_is_denied_even_in_part() {
    let rules = json!([
        { "allow": true, "type": "a", "access": "rwm" },
        { "allow": false, "type": "c", "major": 10, "minor": 232, "access": "w" },
    ]);
    let filter = plan(&rules, &json!([])).unwrap();
    assert!(char_access(&filter, 10, 232, Access::READ.0));
    assert!(!char_access(&filter, 10, 232, Access::WRITE.0));
    assert!(!char_access(&filter, 10, 232, READ_WRITE));
    assert!(char_access(&filter, 10, 233, READ_WRITE));
}

#[test]
fn later_rules_override_earlier_ones() {
    let allow = json!({ "allow": true, "type": "c", "major": 1, "minor": 11, "access": "rw" });
    let deny = json!({ "allow": false, "type": "c", "major": 1, "minor": 11, "access": "w" });
    let filter = plan(&json!([allow, deny]), &json!([])).unwrap();
    assert!(char_access(&filter, 1, 11, Access::READ.0));
    assert!(!char_access(&filter, 1, 11, Access::WRITE.0));
    let filter = plan(&json!([deny, allow]), &json!([])).unwrap();
    assert!(char_access(&filter, 1, 11, READ_WRITE));
    let all = json!({ "allow": false, "access": "rwm" });
    let filter = plan(&json!([allow, all]), &json!([])).unwrap();
    assert!(!char_access(&filter, 1, 11, Access::READ.0));
}

#[test]
fn a_device_of_the_spec_has_only_the_rules_of_the_spec() {
    let devices = json!([{ "type": "c", "path": "/dev/null", "major": 1, "minor": 3 }]);
    let filter = plan(&json!([]), &devices).unwrap();
    assert!(!char_access(&filter, 1, 3, Access::READ.0));
    assert!(char_access(&filter, 1, 5, Access::READ.0));
}

#[test]
fn a_hole_in_a_wildcard_is_refused() {
    let rules = json!([
        { "allow": true, "type": "c", "major": 1, "access": "rw" },
        { "allow": false, "type": "c", "major": 1, "minor": 11, "access": "w" },
    ]);
    let error = plan(&rules, &json!([])).unwrap_err().to_string();
    assert!(error.contains("linux.resources.devices[1]"), "{error}");
    assert!(error.contains("c 1:*"), "{error}");
    // Other accesses are no hole.
    let rules = json!([
        { "allow": true, "type": "c", "major": 1, "access": "r" },
        { "allow": false, "type": "c", "major": 1, "minor": 11, "access": "w" },
    ]);
    assert!(plan(&rules, &json!([])).is_ok());
}

#[test]
fn wrong_rules_are_named() {
    for (rule, field) in [
        (
            json!({ "allow": true, "type": "u", "access": "r" }),
            "[0].type",
        ),
        (json!({ "allow": true, "type": "c" }), "[0].access"),
        (
            json!({ "allow": true, "type": "c", "access": "rx" }),
            "[0].access",
        ),
        (
            json!({ "allow": true, "major": 4_294_967_296_i64, "access": "r" }),
            "[0].major",
        ),
    ] {
        let error = plan(&json!([rule]), &json!([])).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
}
