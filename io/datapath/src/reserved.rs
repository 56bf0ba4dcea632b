//! The node's ports that connections are forwarded and masqueraded from: kept from the kernel, which would give them to the
//! node's own sockets. Explicit binds are not prevented.

use weft_plan::FORWARDING_PORTS;

use crate::error::OpenError;
use crate::node::{read_sysctl, write_sysctl};

const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
const EPHEMERAL: &str = "net/ipv4/ip_local_port_range";
/// What is left for the node's own sockets has to be this much.
const LEAST_OWN: u32 = 1024;

/// In the calling thread's namespace; idempotent.
pub(crate) fn reserve() -> Result<(), OpenError> {
    let own = read_sysctl(EPHEMERAL).unwrap_or_default();
    if !leaves_enough(&own) {
        tracing::warn!(
            range = own,
            "the node's own connections use no other ports than those that pods' connections leave from: the two may collide"
        );
        return Ok(());
    }
    let mut taken = parse(&read_sysctl(RESERVED).unwrap_or_default());
    if taken.iter().any(|(first, last)| *first <= FORWARDING_PORTS[0] && *last >= FORWARDING_PORTS[1]) {
        return Ok(());
    }
    taken.push((FORWARDING_PORTS[0], FORWARDING_PORTS[1]));
    write_sysctl(RESERVED, &print(&taken))
}

/// What others have reserved below stays.
pub(crate) fn release() -> Result<(), OpenError> {
    let taken = parse(&read_sysctl(RESERVED).unwrap_or_default());
    let kept: Vec<(u16, u16)> = taken
        .iter()
        .filter(|(first, _)| *first < FORWARDING_PORTS[0])
        .map(|(first, last)| (*first, (*last).min(FORWARDING_PORTS[0] - 1)))
        .collect();
    if kept == taken {
        return Ok(());
    }
    write_sysctl(RESERVED, &print(&kept))
}

fn leaves_enough(range: &str) -> bool {
    let mut bounds = range.split_whitespace().map(str::parse::<u32>);
    let (Some(Ok(first)), Some(Ok(last))) = (bounds.next(), bounds.next()) else { return true };
    let below = last.min(u32::from(FORWARDING_PORTS[0]) - 1);
    (below + 1).saturating_sub(first) >= LEAST_OWN
}

fn parse(text: &str) -> Vec<(u16, u16)> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
    };
    text.split(',').filter_map(range).collect()
}

/// An empty list is a line of its own.
fn print(ranges: &[(u16, u16)]) -> String {
    let ranges: Vec<String> = ranges.iter().map(|(first, last)| format!("{first}-{last}")).collect();
    if ranges.is_empty() { "\n".to_owned() } else { ranges.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse("8080,9000-9100"), [(8080, 8080), (9000, 9100)]);
        assert_eq!((parse(""), print(&[])), (vec![], "\n".to_owned()));
        assert_eq!(print(&parse("8080,9000-9100")), "8080-8080,9000-9100");
    }

    #[test]
    fn a_node_keeps_ports_of_its_own() {
        assert!(leaves_enough("32768\t60999") && leaves_enough("1024 65535"));
        assert!(!leaves_enough("50000\t60000") && !leaves_enough("49000 65535"));
    }
}
