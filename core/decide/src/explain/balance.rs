//! In words: which frontend of a service it is, and how one of its backends is chosen.

use weft_model::{Affinity, Balancing};
use weft_plan::{Exposure, ServicePlan};

pub(super) fn balanced(service: &ServicePlan) -> String {
    let frontend = match service.exposure {
        Exposure::ClusterIp => "",
        Exposure::NodePort => "the node port of ",
        Exposure::ExternalIp => "an external IP of ",
        Exposure::LoadBalancer => "a load balancer address of ",
    };
    let port = match service.port_name.as_str() {
        "" => String::new(),
        name => format!(" port {name}"),
    };
    format!("{frontend}service {}{port}; {}", service.service, choice(service))
}

fn choice(service: &ServicePlan) -> String {
    let count = service.backends().len();
    let plural = if count == 1 { "" } else { "s" };
    let weighted = service.backends().windows(2).any(|pair| pair[0].weight != pair[1].weight);
    let by = match (service.balancing, weighted) {
        (Balancing::Random, false) => "at random",
        (Balancing::Random, true) => "at random, by weight",
        (Balancing::Maglev, false) => "by a hash of the connection",
        (Balancing::Maglev, true) => "by a hash of the connection, by weight",
    };
    let again = match service.affinity {
        Affinity::None => String::new(),
        Affinity::ClientIp { seconds } => format!(", and kept by the client for {}", duration(seconds)),
    };
    format!("one of {count} ready backend{plural} is chosen {by}{again}")
}

fn duration(seconds: u32) -> String {
    match seconds {
        _ if seconds.is_multiple_of(3600) => format!("{} h", seconds / 3600),
        _ if seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        _ => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use weft_model::{ServiceKey, Weight};
    use weft_plan::{Backend, ServiceId};

    use super::*;

    #[test]
    fn the_sentence_says_what_steers_the_choice() {
        let backend = Backend::at("10.244.1.2".parse().unwrap(), weft_model::Port(80));
        let heavy = Backend { weight: Weight(3), ..backend.clone() };
        let mut service =
            ServicePlan::cluster_ip(ServiceId(1), ServiceKey::new("shop", "web"), vec![backend, heavy]);
        service.affinity = Affinity::ClientIp { seconds: 10_800 };
        service.exposure = Exposure::NodePort;
        service.port_name = "http".to_owned();
        assert_eq!(
            balanced(&service),
            "the node port of service shop/web port http; one of 2 ready backends is chosen at random, by weight, and kept by the client for 3 h"
        );
    }
}
