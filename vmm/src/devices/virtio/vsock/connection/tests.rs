use super::*;

fn packet(op: u16) -> Header {
    Header {
        op,
        buf_alloc: 1000,
        ..Header::default()
    }
}

fn established() -> Connection {
    let mut connection = Connection::from_guest(&packet(op::REQUEST));
    assert_eq!(connection.next_control().unwrap().op, op::RESPONSE);
    connection
}

fn data(len: u32) -> Header {
    Header {
        len,
        ..packet(op::RW)
    }
}

#[test]
fn a_host_connection_requests_and_waits_for_the_response() {
    let mut connection = Connection::to_guest();
    assert!(!connection.is_established());
    assert_eq!(connection.next_control().unwrap().op, op::REQUEST);
    assert_eq!(connection.next_control(), None);
    assert_eq!(connection.receive(&packet(op::RESPONSE)), Event::Accepted);
    assert!(connection.is_established());
    assert_eq!(connection.room(), 1000);
}

#[test]
fn a_response_before_the_request_left_is_a_violation() {
    let mut connection = Connection::to_guest();
    assert_eq!(connection.receive(&packet(op::RESPONSE)), Event::Violation);
}

#[test]
fn operations_out_of_place_are_violations() {
    for op in [
        op::REQUEST,
        op::RW,
        op::SHUTDOWN,
        op::CREDIT_REQUEST,
        0,
        8,
        u16::MAX,
    ] {
        let mut connection = Connection::to_guest();
        connection.next_control();
        assert_eq!(connection.receive(&packet(op)), Event::Violation, "{op}");
    }
    for op in [op::REQUEST, op::RESPONSE, 0, 8, u16::MAX] {
        assert_eq!(established().receive(&packet(op)), Event::Violation, "{op}");
    }
}

#[test]
fn a_reset_ends_the_stream_in_every_state() {
    assert_eq!(
        Connection::to_guest().receive(&packet(op::RST)),
        Event::Reset
    );
    assert_eq!(established().receive(&packet(op::RST)), Event::Reset);
}

#[test]
fn room_follows_what_was_sent_and_consumed_across_the_wrap() {
    let mut connection = established();
    connection.sent = Wrapping(u32::MAX - 99);
    connection.guest_forwarded = connection.sent;
    connection.send(400);
    assert_eq!(connection.room(), 600);
    let update = Header {
        fwd_cnt: 200,
        ..packet(op::CREDIT_UPDATE)
    };
    assert_eq!(connection.receive(&update), Event::Nothing);
    assert_eq!(connection.room(), 900);
}

#[test]
fn a_guest_that_consumed_more_than_it_got_is_a_violation() {
    let mut connection = established();
    connection.send(10);
    let update = Header {
        fwd_cnt: 11,
        ..packet(op::CREDIT_UPDATE)
    };
    assert_eq!(connection.receive(&update), Event::Violation);
}

#[test]
fn an_older_count_is_no_news() {
    let mut connection = established();
    connection.send(500);
    let mut update = packet(op::CREDIT_UPDATE);
    update.fwd_cnt = 300;
    connection.receive(&update);
    update.fwd_cnt = 200;
    assert_eq!(connection.receive(&update), Event::Nothing);
    assert_eq!(connection.room(), 800);
}

#[test]
fn a_shrunken_buffer_leaves_no_room_and_no_underflow() {
    let mut connection = established();
    connection.send(500);
    let mut update = packet(op::CREDIT_UPDATE);
    update.buf_alloc = 0;
    assert_eq!(connection.receive(&update), Event::Nothing);
    assert_eq!(connection.room(), 0);
}

#[test]
fn credit_is_asked_for_once_until_some_arrives() {
    let mut connection = established();
    connection.send(1000);
    connection.want_credit();
    assert_eq!(connection.next_control().unwrap().op, op::CREDIT_REQUEST);
    connection.want_credit();
    assert_eq!(connection.next_control(), None);
    let mut update = packet(op::CREDIT_UPDATE);
    update.fwd_cnt = 1000;
    connection.receive(&update);
    connection.send(1000);
    connection.want_credit();
    assert_eq!(connection.next_control().unwrap().op, op::CREDIT_REQUEST);
}

#[test]
fn bytes_beyond_the_buffer_are_a_violation() {
    let mut connection = established();
    for _ in 0..BUF_ALLOC / MAX_PAYLOAD {
        assert_eq!(connection.receive(&data(MAX_PAYLOAD)), Event::Data);
    }
    assert_eq!(connection.clone().receive(&data(1)), Event::Violation);
    connection.forward(1);
    assert_eq!(connection.receive(&data(1)), Event::Data);
}

#[test]
fn a_packet_longer_than_the_limit_is_a_violation() {
    assert_eq!(
        established().receive(&data(MAX_PAYLOAD + 1)),
        Event::Violation
    );
    assert_eq!(established().receive(&data(u32::MAX)), Event::Violation);
}

#[test]
fn freed_space_is_told_at_the_threshold_and_with_every_packet() {
    let mut connection = established();
    let mut header = Header::default();
    connection.receive(&data(MAX_PAYLOAD));
    connection.forward(CREDIT_UPDATE_THRESHOLD - 1);
    assert!(!connection.has_control());
    connection.forward(1);
    assert_eq!(connection.next_control().unwrap().op, op::CREDIT_UPDATE);
    connection.stamp(&mut header);
    assert_eq!(header.fwd_cnt, CREDIT_UPDATE_THRESHOLD);
    assert_eq!(header.buf_alloc, BUF_ALLOC);
    assert!(!connection.has_control());
}

#[test]
fn a_credit_request_is_answered() {
    let mut connection = established();
    assert_eq!(
        connection.receive(&packet(op::CREDIT_REQUEST)),
        Event::Nothing
    );
    assert_eq!(connection.next_control().unwrap().op, op::CREDIT_UPDATE);
}

#[test]
fn shutdown_flags_of_the_guest_add_up() {
    let mut connection = established();
    let mut header = packet(op::SHUTDOWN);
    header.flags = shutdown::SEND;
    assert_eq!(connection.receive(&header), Event::Shutdown);
    assert_eq!(connection.guest_shut(), shutdown::SEND);
    assert_eq!(connection.clone().receive(&data(1)), Event::Violation);
    header.flags = shutdown::RECEIVE;
    assert_eq!(connection.receive(&header), Event::Finished);
}

#[test]
fn shutdown_flags_of_the_host_are_told_as_they_grow() {
    let mut connection = established();
    connection.shut(shutdown::SEND);
    let first = connection.next_control().unwrap();
    assert_eq!((first.op, first.flags), (op::SHUTDOWN, shutdown::SEND));
    assert!(!connection.told_all());
    connection.shut(shutdown::SEND);
    assert_eq!(connection.next_control(), None);
    connection.shut(shutdown::RECEIVE);
    let second = connection.next_control().unwrap();
    assert_eq!((second.op, second.flags), (op::SHUTDOWN, shutdown::BOTH));
    assert!(connection.told_all());
}
