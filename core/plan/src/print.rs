//! The plan as text: one row per entry, the same in logs, golden scripts and the command line.

use std::fmt;

use crate::{
    ClassId, ClassMatch, Decision, EndpointPlan, NextHop, NodePlan, PolicyMatch, PolicySet, PolicySetId,
    PortPrefix, RuleId,
};

impl fmt::Display for NodePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (title, table) in self.tables() {
            writeln!(f, "{title}\n{table}")?;
        }
        Ok(())
    }
}

impl NodePlan {
    /// Every table with its title, in the order a packet meets them. Names are many and have their own listing.
    pub fn tables(&self) -> Vec<(&'static str, Table)> {
        vec![
            ("ENDPOINTS", self.endpoint_table()),
            ("POLICIES", self.policy_table()),
            ("CLASSES", self.class_table()),
            ("SERVICES", self.service_table()),
            ("ROUTES", self.route_table()),
        ]
    }

    fn endpoint_table(&self) -> Table {
        let set = |set: Option<PolicySetId>| set.map_or("open".to_owned(), |set| set.to_string());
        let row = |(addr, endpoint): (&weft_model::Addr, &EndpointPlan)| {
            let EndpointPlan { pod, device, ingress, egress, .. } = endpoint;
            vec![addr.to_string(), pod.to_string(), device.clone(), set(*ingress), set(*egress)]
        };
        Table::new(["ADDRESS", "POD", "DEVICE", "INGRESS", "EGRESS"], self.endpoints.iter().map(row))
    }

    fn policy_table(&self) -> Table {
        let rows = self.policy_sets.iter().flat_map(|(id, set)| self.set_rows(*id, set));
        Table::new(["SET", "DIRECTION", "CLASS", "PORTS", "VERDICT", "RULE"], rows)
    }

    fn set_rows(&self, id: PolicySetId, set: &PolicySet) -> Vec<Vec<String>> {
        let row = |class: String, ports: String, verdict: &str, rule: RuleId| {
            let rule =
                self.rules.get(&rule).map_or(format!("rule {:08x}", rule.0), |cause| cause.to_string());
            vec![id.to_string(), set.direction.to_string(), class, ports, verdict.to_owned(), rule]
        };
        let entries = set.entries.iter().map(|(key, Decision { verdict, rule })| {
            let verdict = match verdict {
                weft_model::Verdict::Forwarded => "allow",
                weft_model::Verdict::Denied => "deny",
            };
            row(key.class.to_string(), key.ports(), verdict, *rule)
        });
        let default = row("other".to_owned(), "other".to_owned(), "deny", set.default_rule);
        entries.chain([default]).collect()
    }

    fn class_table(&self) -> Table {
        let rows = self.classes.iter().map(|(prefix, class)| vec![prefix.to_string(), class.to_string()]);
        Table::new(["PREFIX", "CLASS"], rows)
    }

    fn service_table(&self) -> Table {
        let rows = self.services.iter().map(|(frontend, plan)| {
            let port = if plan.port_name.is_empty() { "-" } else { &plan.port_name };
            vec![
                frontend.to_string(),
                plan.service.to_string(),
                port.to_owned(),
                plan.exposure.to_string(),
                plan.list.to_string(),
                plan.edge.as_ref().map_or("-".to_owned(), |edge| edge.beside(&plan.list)),
            ]
        });
        Table::new(["FRONTEND", "SERVICE", "PORT", "KIND", "BACKENDS", "FROM OUTSIDE"], rows)
    }

    fn route_table(&self) -> Table {
        let rows = self.routes.iter().map(|(prefix, NextHop { node, via })| {
            vec![prefix.to_string(), node.to_string(), via.to_string()]
        });
        Table::new(["PREFIX", "NODE", "VIA"], rows)
    }
}

impl PolicyMatch {
    /// `80/TCP`, `8000-8007/TCP`, `any/UDP`, `any`
    pub fn ports(&self) -> String {
        let Some(protocol) = self.protocol else { return "any".to_owned() };
        let PortPrefix { value, bits } = self.port;
        let last = u32::from(value) | (0xffff_u32 >> bits);
        match bits {
            0 => format!("any/{protocol}"),
            16 => format!("{value}/{protocol}"),
            _ => format!("{value}-{last}/{protocol}"),
        }
    }
}

impl fmt::Display for ClassMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ClassId(self.number()).fmt(f)
    }
}

impl fmt::Display for PolicySetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:08x}", self.0))
    }
}

/// Rows of text under titles, in columns as wide as they need.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    titles: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<const N: usize>(titles: [&str; N], rows: impl IntoIterator<Item = Vec<String>>) -> Self {
        Self { titles: titles.map(str::to_owned).to_vec(), rows: rows.into_iter().collect() }
    }

    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = || std::iter::once(&self.titles).chain(&self.rows);
        let width =
            |column: usize| lines().map(|line| line.get(column).map_or(0, |cell| cell.chars().count())).max();
        let widths: Vec<usize> =
            (0..self.titles.len()).map(|column| width(column).unwrap_or_default()).collect();
        for line in lines() {
            let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}
