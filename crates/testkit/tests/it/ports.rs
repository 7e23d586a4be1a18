use std::collections::HashSet;

use synctool_testkit::Port;

#[test]
fn held_ports_differ_and_stay_below_the_ephemeral_range() {
    let ports: Vec<Port> = (0..200).map(|_| Port::free()).collect();
    let numbers: HashSet<u16> = ports.iter().map(Port::number).collect();
    assert_eq!(numbers.len(), ports.len());
    assert!(numbers.iter().all(|port| (20_000..32_000).contains(port)));
}
