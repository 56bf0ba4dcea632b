//! What can be told about an expression without running it: unknown names, use of oldSelf, and its cost.
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr};

use super::functions;

/// Roots of names that are not variables but namespaces of functions.
const NAMESPACES: &[&str] = &["format", "math", "optional", "sets", "lists", "strings"];
const TYPES: &[&str] = &[
    "bool",
    "bytes",
    "double",
    "duration",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "timestamp",
    "type",
    "uint",
];

/// What the rest of the schema needs to know about an expression.
#[derive(Debug, Default, Clone)]
pub(super) struct Summary {
    pub uses_old_self: bool,
    /// Expression nodes by how many loops they stand in.
    nodes_by_depth: Vec<u64>,
}

impl Summary {
    /// An upper bound for evaluating it once when no list or map has more than `widest` entries.
    pub(super) fn cost(&self, widest: u64) -> u64 {
        let mut factor = 1u64;
        let mut total = 0u64;
        for nodes in &self.nodes_by_depth {
            total = total.saturating_add(nodes.saturating_mul(factor));
            factor = factor.saturating_mul(widest.max(1));
        }
        total
    }
}

pub(super) fn summarize(root: &IdedExpr) -> Result<Summary, String> {
    let mut walk = Walk { summary: Summary::default(), scope: vec!["self".into(), "oldSelf".into()] };
    walk.visit(root, 0)?;
    Ok(walk.summary)
}

struct Walk {
    summary: Summary,
    scope: Vec<String>,
}

impl Walk {
    fn visit(&mut self, node: &IdedExpr, depth: usize) -> Result<(), String> {
        if self.summary.nodes_by_depth.len() <= depth {
            self.summary.nodes_by_depth.resize(depth + 1, 0);
        }
        self.summary.nodes_by_depth[depth] += 1;
        match &node.expr {
            Expr::Unspecified | Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => self.name(name),
            Expr::Select(select) => self.visit(&select.operand, depth),
            Expr::Call(call) => self.call(call, depth),
            Expr::List(list) => list.elements.iter().try_for_each(|e| self.visit(e, depth)),
            Expr::Map(map) => map.entries.iter().try_for_each(|e| self.entry(&e.expr, depth)),
            Expr::Struct(s) => Err(format!("undeclared type {:?}", s.type_name)),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, depth),
        }
    }

    fn name(&mut self, name: &str) -> Result<(), String> {
        self.summary.uses_old_self |= name == "oldSelf";
        let known =
            self.scope.iter().any(|n| n == name) || TYPES.contains(&name) || NAMESPACES.contains(&name);
        if known { Ok(()) } else { Err(format!("undeclared reference to '{name}'")) }
    }

    fn call(&mut self, call: &CallExpr, depth: usize) -> Result<(), String> {
        if !functions::is_known(&call.func_name) {
            return Err(format!("undeclared reference to function '{}'", call.func_name));
        }
        if let Some(target) = &call.target {
            self.visit(target, depth)?;
        }
        call.args.iter().try_for_each(|argument| self.visit(argument, depth))
    }

    fn entry(&mut self, entry: &EntryExpr, depth: usize) -> Result<(), String> {
        match entry {
            EntryExpr::StructField(field) => self.visit(&field.value, depth),
            EntryExpr::MapEntry(entry) => {
                self.visit(&entry.key, depth)?;
                self.visit(&entry.value, depth)
            }
        }
    }

    fn comprehension(&mut self, c: &ComprehensionExpr, depth: usize) -> Result<(), String> {
        self.visit(&c.iter_range, depth)?;
        self.visit(&c.accu_init, depth)?;
        let outer = self.scope.len();
        self.scope.push(c.iter_var.clone());
        self.scope.extend(c.iter_var2.clone());
        self.scope.push(c.accu_var.clone());
        let inside = self.visit(&c.loop_cond, depth + 1).and_then(|()| self.visit(&c.loop_step, depth + 1));
        let result = inside.and_then(|()| self.visit(&c.result, depth));
        self.scope.truncate(outer);
        result
    }
}
