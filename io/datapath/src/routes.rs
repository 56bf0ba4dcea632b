//! Kernel routes by netlink. Which there should be is said by `node` and `pods`.

use std::net::IpAddr;

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope};
use weft_model::{Addr, Cidr, Family};

use crate::error::NetlinkError;
use crate::netlink::{Netlink, ORIGIN};

/// A route in the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub to: Cidr,
    pub index: u32,
    pub via: Option<Addr>,
}

impl Route {
    fn describe(&self) -> String {
        let via = self.via.map(|via| format!(" via {via}")).unwrap_or_default();
        format!("{}{via} dev {}", self.to, self.index)
    }

    fn message(&self) -> Result<RouteMessage, String> {
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .output_interface(self.index)
            .protocol(RouteProtocol::Other(ORIGIN))
            .destination_prefix(self.to.addr().to_ip(), self.to.family_bits())
            .map_err(|error| error.to_string())?;
        match self.via {
            // The pods' gateway has no prefix of its own on the link.
            Some(via) => builder = builder.gateway(via.to_ip()).map_err(|error| error.to_string())?,
            None if self.to.family() == Family::V4 => builder = builder.scope(RouteScope::Link),
            None => {}
        }
        Ok(builder.build())
    }

    fn from_message(message: &RouteMessage) -> Option<Self> {
        if message.header.protocol != RouteProtocol::Other(ORIGIN) {
            return None;
        }
        let (mut to, mut index, mut via) = (None, 0, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(addr) => to = to_addr(addr),
                RouteAttribute::Gateway(addr) => via = to_addr(addr),
                RouteAttribute::Oif(oif) => index = *oif,
                _ => {}
            }
        }
        Some(Self { to: Cidr::around(to?, message.header.destination_prefix_length)?, index, via })
    }
}

fn to_addr(addr: &RouteAddress) -> Option<Addr> {
    match addr {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

impl Netlink {
    /// Every route that Weft put here, whichever process did.
    pub fn our_routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [Family::V4, Family::V6] {
            let mut request = RouteMessage::default();
            request.header.address_family = match family {
                Family::V4 => rtnetlink::packet_route::AddressFamily::Inet,
                Family::V6 => rtnetlink::packet_route::AddressFamily::Inet6,
            };
            for answer in self.dump(RouteNetlinkMessage::GetRoute(request), "routes")? {
                if let RouteNetlinkMessage::NewRoute(message) = answer {
                    routes.extend(Route::from_message(&message));
                }
            }
        }
        Ok(routes)
    }

    pub fn put_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let message = self.route_message(route)?;
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("add route {}", route.describe())
        })
    }

    /// The default route through a gateway that has no address on the link.
    pub fn put_default_route(&self, index: u32, gateway: Addr) -> Result<(), NetlinkError> {
        let all = match gateway.family() {
            Family::V4 => "0.0.0.0/0",
            Family::V6 => "::/0",
        };
        let route = Route { to: all.parse().expect("a literal prefix"), index, via: Some(gateway) };
        let mut message = self.route_message(&route)?;
        message.header.flags |= rtnetlink::packet_route::route::RouteFlags::Onlink;
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("add default route via {gateway} dev {index}")
        })
    }

    pub fn remove_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let message = self.route_message(route)?;
        self.change_if_there(RouteNetlinkMessage::DelRoute(message), 0, || {
            format!("remove route {}", route.describe())
        })
    }

    fn route_message(&self, route: &Route) -> Result<RouteMessage, NetlinkError> {
        route.message().map_err(|message| NetlinkError {
            action: format!("describe route {}", route.describe()),
            source: std::io::Error::other(message),
        })
    }
}
