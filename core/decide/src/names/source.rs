//! Where names are looked up: a plan, or a more compact form of one that a name server holds.

use std::borrow::Cow;

use weft_model::{Addr, Cidr};
use weft_plan::{Absence, NameClient, NamePlan, NameRecords};

/// Names are in lower case without a trailing dot.
pub trait Names {
    fn domain(&self) -> &str;
    /// Empty: there is no zone that clusters share.
    fn set_domain(&self) -> &str;
    fn records(&self, name: &str) -> Option<Cow<'_, NameRecords>>;
    fn exists(&self, name: &str) -> bool;
    fn absence(&self, name: &str) -> Option<Absence>;
    /// The names that an address stands for, in their order.
    fn pointers(&self, addr: Addr) -> Option<Vec<String>>;
    fn points_into(&self, prefix: Cidr) -> bool;
    /// The cluster's own prefix that these addresses are of: a pointer that is missing here is missing everywhere.
    fn own_prefix(&self, prefix: Cidr) -> Option<Cidr>;
    /// The pod of this node that asks from an address.
    fn client(&self, addr: Addr) -> Option<&NameClient>;
}

impl Names for NamePlan {
    fn domain(&self) -> &str {
        &self.domain
    }

    fn set_domain(&self) -> &str {
        &self.set_domain
    }

    fn records(&self, name: &str) -> Option<Cow<'_, NameRecords>> {
        self.names.get(name).map(Cow::Borrowed)
    }

    fn exists(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    fn absence(&self, name: &str) -> Option<Absence> {
        self.absent.get(name).cloned()
    }

    fn pointers(&self, addr: Addr) -> Option<Vec<String>> {
        self.pointers.get(&addr).map(|names| names.iter().cloned().collect())
    }

    fn points_into(&self, prefix: Cidr) -> bool {
        self.pointers.range(prefix.addr()..).next().is_some_and(|(addr, _)| prefix.contains(*addr))
    }

    fn own_prefix(&self, prefix: Cidr) -> Option<Cidr> {
        self.reverse.iter().copied().filter(|cidr| cidr.covers(prefix)).min_by_key(|cidr| cidr.bits())
    }

    fn client(&self, addr: Addr) -> Option<&NameClient> {
        self.clients.get(&addr)
    }
}
