//! What the server decides about objects on their way in: addresses, ports, namespaces, escalation.

mod addresses;
pub mod escalation;
pub mod namespaces;
mod pods;
mod services;

use serde_json::Value;

use crate::api::{Api, Call};
use crate::http::request::Target;
use crate::status::Result;
use crate::store::Store;
pub use addresses::{Addresses, Reservation};
pub use services::ServiceRanges;

/// Admission with state: the addresses and ports of services.
pub struct Admission {
    addresses: Addresses,
    ranges: ServiceRanges,
}

/// What an admitted write holds until it is stored; dropping it lets go.
#[must_use]
#[derive(Default)]
pub struct Admitted {
    _reservation: Option<Reservation>,
}

impl Admitted {
    pub fn nothing() -> Self {
        Self::default()
    }
}

impl Admission {
    pub fn new(store: Store, ranges: ServiceRanges) -> Self {
        Self { addresses: Addresses::new(store), ranges }
    }

    pub fn create(&self, api: &Api, call: &Call, target: &Target, object: &mut Value) -> Result<Admitted> {
        match resource(target) {
            ("", "services") => return self.admit_service(target, None, object),
            ("", "namespaces") => namespaces::create(object),
            ("", "pods") => pods::create(api, target, object)?,
            ("apiextensions.k8s.io", "customresourcedefinitions") => {
                crate::tasks::definitions::guard(object);
            }
            ("rbac.authorization.k8s.io", _) => escalation::check(api, call, target, None, object)?,
            _ => {}
        }
        Ok(Admitted::nothing())
    }

    pub fn update(
        &self,
        api: &Api,
        call: &Call,
        target: &Target,
        old: &Value,
        new: &mut Value,
    ) -> Result<Admitted> {
        match resource(target) {
            ("", "services") => return self.admit_service(target, Some(old), new),
            ("", "namespaces") => namespaces::update(old, new),
            ("rbac.authorization.k8s.io", _) => escalation::check(api, call, target, Some(old), new)?,
            _ => {}
        }
        Ok(Admitted::nothing())
    }

    fn admit_service(&self, target: &Target, old: Option<&Value>, new: &mut Value) -> Result<Admitted> {
        let reservation = services::admit(&self.addresses, &self.ranges, target, old, new)?;
        Ok(Admitted { _reservation: Some(reservation) })
    }
}

fn resource(target: &Target) -> (&str, &str) {
    (&target.kind.group, &target.kind.plural)
}
