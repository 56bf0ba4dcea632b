//! Announced addresses on a real link: who asks is answered by the programs, probes too, and nobody is after they are
//! withdrawn.

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use support::{Fabric, PATIENCE, addr};
use weft_datapath::{Heard, Neighbours};
use weft_model::{Addr, Routing};

const V4: &str = "172.30.0.200";
const V6: &str = "fd00:172:30::200";
const OTHER: &str = "172.30.0.201";

/// Who answers when another node's machine asks for the address before it takes it.
fn answers(fabric: &Fabric, asker: usize, to: Addr, patience: Duration) -> Vec<Heard> {
    fabric.nodes[asker].namespace.run(move || {
        let neighbours = Neighbours::open("eth0").unwrap();
        neighbours.probe(to).unwrap();
        let end = Instant::now() + patience;
        let mut heard = Vec::new();
        while heard.is_empty() && Instant::now() < end {
            heard.extend(
                neighbours.poll(Duration::from_millis(100)).unwrap().into_iter().filter(|h| h.addr == to),
            );
        }
        heard
    })
}

/// The link address another machine's own stack resolves the address to.
fn resolved(fabric: &Fabric, asker: usize, to: &str) -> String {
    let namespace = &fabric.nodes[asker].namespace;
    support::ping(namespace, addr(to));
    namespace.command("ip", &format!("neigh show {to} dev eth0"))
}

fn link_address(fabric: &Fabric, node: usize) -> String {
    let shown = fabric.nodes[node].namespace.command("ip", "-o link show eth0");
    let mut words = shown.split_whitespace().skip_while(|word| *word != "link/ether");
    words.nth(1).unwrap().to_owned()
}

#[test]
fn the_node_that_announces_an_address_answers_for_it_and_only_then() {
    let mut fabric = Fabric::new(2, Routing::Direct);
    fabric.apply_all();
    let quiet = Duration::from_millis(500);
    for text in [V4, V6] {
        assert_eq!(answers(&fabric, 1, addr(text), quiet), [], "{text} is nobody's yet");
    }
    fabric.nodes[0].plan.announced = BTreeSet::from([addr(V4), addr(V6)]);
    fabric.nodes[0].apply();
    let own = link_address(&fabric, 0);
    for text in [V4, V6] {
        let heard = answers(&fabric, 1, addr(text), PATIENCE);
        assert_eq!(heard.first().map(|heard| heard.from.to_string()), Some(own.clone()), "{text}");
        assert!(resolved(&fabric, 1, text).contains(&format!("lladdr {own}")), "{text}");
    }
    assert_eq!(answers(&fabric, 1, addr(OTHER), quiet), []);
    fabric.nodes[0].plan.announced.clear();
    fabric.nodes[0].apply();
    for text in [V4, V6] {
        assert_eq!(answers(&fabric, 1, addr(text), quiet), [], "{text} was withdrawn");
    }
}

#[test]
fn a_holder_hears_another_machine_announce_its_address_and_others_learn_it() {
    let mut fabric = Fabric::new(2, Routing::Direct);
    fabric.nodes[0].plan.announced = BTreeSet::from([addr(V4), addr(V6)]);
    fabric.apply_all();
    let holder = fabric.nodes[0].namespace.run(|| Neighbours::open("eth0").unwrap());
    let stranger = fabric.nodes[1].namespace.run(|| Neighbours::open("eth0").unwrap());
    for text in [V4, V6] {
        stranger.announce(addr(text)).unwrap();
        let end = Instant::now() + PATIENCE;
        let mut heard = None;
        while heard.is_none() && Instant::now() < end {
            let said = holder.poll(Duration::from_millis(100)).unwrap();
            heard = said.into_iter().find(|heard| heard.addr == addr(text));
        }
        assert_eq!(heard.unwrap().from.to_string(), link_address(&fabric, 1), "{text}");
    }
}

#[test]
fn groups_are_joined_once_and_outlive_who_joined() {
    let fabric = Fabric::new(1, Routing::Direct);
    let node = &fabric.nodes[0].namespace;
    let group = Neighbours::group(addr(V6)).unwrap();
    let member = |node: &support::Namespace| {
        node.command("ip", "maddress show dev eth0").contains("33:33:ff:00:02:00")
    };
    assert!(!member(node));
    node.run(|| {
        let neighbours = Neighbours::open("eth0").unwrap();
        neighbours.join(group).unwrap();
        neighbours.join(group).unwrap();
    });
    assert!(member(node));
    node.run(|| {
        let neighbours = Neighbours::open("eth0").unwrap();
        neighbours.leave(group).unwrap();
        neighbours.leave(group).unwrap();
    });
    assert!(!member(node));
}
