//! Compiles and evaluates the CEL rules of custom kinds, with Kubernetes' names for fields and a bounded cost.
//! Where rules stand in a schema and what their failures say is decided in `validate`.
mod ast;
mod functions;
mod values;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use cel::common::types::CelOptional;
use cel::{Context, Env, Program};
use serde_json::Value;

use super::model::Schema;

/// A compiled expression.
pub struct Rule {
    program: Program,
    summary: ast::Summary,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rule").field("summary", &self.summary).finish_non_exhaustive()
    }
}

/// How much evaluation one request may still cost, in visited expression nodes.
#[derive(Debug, Clone)]
pub struct Budget {
    remaining: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { remaining: 20_000_000 }
    }
}

impl Budget {
    pub fn new(nodes: u64) -> Self {
        Self { remaining: nodes }
    }

    fn spend(&mut self, cost: u64) -> Result<(), String> {
        match self.remaining.checked_sub(cost) {
            Some(rest) => {
                self.remaining = rest;
                Ok(())
            }
            None => Err("validation failed due to running out of cost budget, no further validation rules \
                         will be run"
                .to_owned()),
        }
    }
}

impl Rule {
    /// Compiles an expression over `self` and `oldSelf`.
    pub fn compile(source: &str) -> Result<Self, String> {
        let compiled = catch_unwind(AssertUnwindSafe(|| environment().compile(source)));
        let program = match compiled {
            Ok(Ok(program)) => program,
            Ok(Err(errors)) => return Err(errors.to_string().replace('\n', " ")),
            Err(_) => return Err("the expression cannot be parsed".to_owned()),
        };
        let summary = ast::summarize(program.expression())?;
        Ok(Self { program, summary })
    }

    pub fn uses_old_self(&self) -> bool {
        self.summary.uses_old_self
    }

    /// Whether a value satisfies the rule.
    pub(super) fn check(
        &self,
        schema: &Schema,
        value: &Value,
        old: Option<&Value>,
        optional_old_self: bool,
        budget: &mut Budget,
    ) -> Result<bool, String> {
        match self.evaluate(schema, value, old, optional_old_self, budget)? {
            cel::Value::Bool(verdict) => Ok(verdict),
            other => Err(format!("the rule must give a bool, not {}", other.type_of())),
        }
    }

    /// The text a message expression gives, if it gives one.
    pub(super) fn text(
        &self,
        schema: &Schema,
        value: &Value,
        old: Option<&Value>,
        optional_old_self: bool,
        budget: &mut Budget,
    ) -> Option<String> {
        match self.evaluate(schema, value, old, optional_old_self, budget) {
            Ok(cel::Value::String(text)) => Some(text.to_string()),
            _ => None,
        }
    }

    fn evaluate(
        &self,
        schema: &Schema,
        value: &Value,
        old: Option<&Value>,
        optional_old_self: bool,
        budget: &mut Budget,
    ) -> Result<cel::Value, String> {
        let widest = values::widest(value).max(old.map_or(0, values::widest));
        budget.spend(self.summary.cost(widest).saturating_add(values::size(value)))?;
        let mut context = Context::with_env(environment().clone());
        functions::add(&mut context);
        context.add_variable_from_value("self", values::convert(schema, value));
        match old.map(|old| values::convert(schema, old)) {
            Some(old) if optional_old_self => {
                let old = old.try_into().map_err(|_| "oldSelf has no CEL form".to_owned())?;
                context.add_variable_as_val("oldSelf", Box::new(CelOptional::of(old)));
            }
            Some(old) => context.add_variable_from_value("oldSelf", old),
            None => context.add_variable_as_val("oldSelf", Box::new(CelOptional::none())),
        }
        // A defect of the interpreter must refuse one object, not end the server.
        match catch_unwind(AssertUnwindSafe(|| self.program.execute(&context))) {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the expression could not be evaluated".to_owned()),
        }
    }
}

fn environment() -> &'static Arc<Env> {
    static ENVIRONMENT: OnceLock<Arc<Env>> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let mut env = Env::stdlib();
        for extension in [cel::extensions::strings, cel::extensions::lists, cel::extensions::math] {
            env.add_extension(extension).expect("the extensions declare different functions");
        }
        Arc::new(env)
    })
}

#[cfg(test)]
mod tests;
