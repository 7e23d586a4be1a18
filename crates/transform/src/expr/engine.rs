//! SQL text to something that can be evaluated: parsing, planning, coercion, and where a mistake is.

use super::{exact, finite, grammar, moments};
use arrow_schema::{DataType, Schema};
use datafusion_common::config::ConfigOptions;
use datafusion_common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion_common::{DFSchema, DataFusionError, Result, SchemaError, TableReference, plan_err};
use datafusion_expr::execution_props::ExecutionProps;
use datafusion_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion_expr::planner::{ContextProvider, ExprPlanner};
use datafusion_expr::simplify::SimplifyContext;
use datafusion_expr::{AggregateUDF, Expr, ExprSchemable, HigherOrderUDF, ScalarUDF, TableSource, WindowUDF};
use datafusion_optimizer::simplify_expressions::ExprSimplifier;
use datafusion_physical_expr::expressions::BinaryExpr;
use datafusion_physical_expr::{PhysicalExpr, create_physical_expr};
use datafusion_sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use datafusion_sql::sqlparser::ast::{self, Spanned, Visit, Visitor};
use datafusion_sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion_sql::sqlparser::parser::{Parser, ParserError};
use datafusion_sql::sqlparser::tokenizer::{Location, Token};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, LazyLock};

/// A mistake in SQL and where it is.
pub(super) struct Mistake {
    pub(super) offset: usize,
    pub(super) what: What,
}

pub(super) enum What {
    Column(String),
    Function(String),
    Other(String),
}

static FUNCTIONS: LazyLock<HashMap<String, Arc<ScalarUDF>>> = LazyLock::new(|| {
    let mut all = HashMap::new();
    for function in datafusion_functions::all_default_functions() {
        for alias in function.aliases() {
            all.insert(alias.clone(), function.clone());
        }
        all.insert(function.name().to_string(), function);
    }
    for (name, function) in moments::functions() {
        all.insert(name.to_string(), function);
    }
    all
});

pub(super) fn function_names() -> Vec<String> {
    let mut names: Vec<String> = FUNCTIONS.keys().cloned().collect();
    names.sort();
    names
}

/// What the planner may ask for: functions, and nothing else.
struct Context {
    options: ConfigOptions,
    planners: Vec<Arc<dyn ExprPlanner>>,
}

impl Context {
    fn new() -> Self {
        let mut options = ConfigOptions::default();
        // Without it, a type with time zone has none.
        options.execution.time_zone = Some("UTC".into());
        Context {
            options,
            planners: vec![
                Arc::new(datafusion_functions::core::planner::CoreFunctionPlanner::default()),
                Arc::new(datafusion_functions::datetime::planner::DatetimeFunctionPlanner),
                Arc::new(datafusion_functions::unicode::planner::UnicodeFunctionPlanner),
            ],
        }
    }
}

impl ContextProvider for Context {
    fn get_table_source(&self, _: TableReference) -> Result<Arc<dyn TableSource>> {
        plan_err!("an expression sees the columns of its row and no tables")
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.planners
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        FUNCTIONS.get(name).cloned()
    }

    fn get_higher_order_meta(&self, _: &str) -> Option<Arc<HigherOrderUDF>> {
        None
    }

    fn get_aggregate_meta(&self, _: &str) -> Option<Arc<AggregateUDF>> {
        None
    }

    fn get_window_meta(&self, _: &str) -> Option<Arc<WindowUDF>> {
        None
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        &self.options
    }

    fn udf_names(&self) -> Vec<String> {
        function_names()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udaf_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udwf_names(&self) -> Vec<String> {
        Vec::new()
    }
}

fn parse(text: &str) -> Result<ast::Expr, Mistake> {
    let parsed = Parser::new(&PostgreSqlDialect {})
        .try_with_sql(text)
        .and_then(|mut parser| {
            let expr = parser.parse_expr()?;
            parser.expect_token(&Token::EOF)?;
            Ok(expr)
        });
    let mut parsed = parsed.map_err(|e| {
        let message = match e {
            ParserError::TokenizerError(m) | ParserError::ParserError(m) => m,
            ParserError::RecursionLimitExceeded => "the expression is nested too deeply".into(),
        };
        // The parser writes the place behind the sentence.
        let (sentence, place) = message.split_once(" at Line: ").unwrap_or((&message, ""));
        let mut numbers = place
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|n| n.parse::<u64>().ok());
        let location = Location {
            line: numbers.next().unwrap_or(0),
            column: numbers.next().unwrap_or(0),
        };
        Mistake {
            offset: if place.is_empty() {
                text.len()
            } else {
                offset(text, location)
            },
            what: What::Other(sentence.trim_start_matches("sql parser error: ").to_string()),
        }
    })?;
    grammar::settle(text, &mut parsed)?;
    Ok(parsed)
}

/// The byte offset of a line and column, both from 1.
pub(super) fn offset(text: &str, location: Location) -> usize {
    let mut start = 0;
    for _ in 1..location.line {
        start += text[start..].find('\n').map_or(0, |at| at + 1);
    }
    let column = usize::try_from(location.column).unwrap_or(1).saturating_sub(1);
    let line = &text[start..];
    start + line.char_indices().nth(column).map_or(line.len(), |(at, _)| at)
}

/// The columns named in a text.
pub(super) fn names(text: &str, into: &mut Vec<String>) -> Result<(), crate::position::ExprError> {
    struct Names<'a>(&'a mut Vec<String>);
    impl Visitor for Names<'_> {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<()> {
            match expr {
                ast::Expr::Identifier(name) => self.0.push(name.value.clone()),
                ast::Expr::CompoundIdentifier(parts) => {
                    self.0.extend(parts.last().map(|p| p.value.clone()));
                }
                _ => {}
            }
            ControlFlow::Continue(())
        }
    }
    let expr = parse(text).map_err(|m| super::explain(text, m, &[]))?;
    let _ = expr.visit(&mut Names(into));
    Ok(())
}

fn to_logical(expr: ast::Expr, schema: &DFSchema) -> Result<Expr> {
    let context = Context::new();
    let options = ParserOptions::new()
        .with_parse_float_as_decimal(true)
        .with_enable_ident_normalization(false)
        .with_map_string_types_to_utf8view(false);
    let planner = SqlToRel::new_with_options(&context, options);
    let expr = planner.sql_to_expr(expr, schema, &mut PlannerContext::new())?;
    let simplifier = simplifier(schema);
    let expr = exact::as_meant(expr, schema, &simplifier)?;
    let expr = finite::checked(simplifier.coerce(expr, schema)?, schema)?;
    let expr = simplifier.simplify(expr)?;
    expr.get_type(schema)?;
    Ok(expr)
}

/// SQL as a coerced and simplified expression.
pub(super) fn plan(text: &str, schema: &DFSchema) -> Result<Expr, Mistake> {
    let parsed = parse(text)?;
    let error = match to_logical(parsed.clone(), schema) {
        Ok(expr) if expr.is_volatile() => {
            return Err(Mistake {
                offset: 0,
                what: What::Other("a function with another value every time makes no repeatable rows".into()),
            });
        }
        Ok(expr) => return Ok(expr),
        Err(e) => e,
    };
    // The innermost part that fails in the same way is where the mistake is.
    struct Culprit<'a> {
        schema: &'a DFSchema,
        message: String,
    }
    impl Visitor for Culprit<'_> {
        type Break = Location;
        fn post_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<Location> {
            match to_logical(expr.clone(), self.schema) {
                Err(e) if sentence(&e) == self.message => ControlFlow::Break(expr.span().start),
                _ => ControlFlow::Continue(()),
            }
        }
    }
    let mut culprit = Culprit {
        schema,
        message: sentence(&error),
    };
    let at = match parsed.visit(&mut culprit) {
        ControlFlow::Break(at) => offset(text, at),
        ControlFlow::Continue(()) => 0,
    };
    Err(Mistake {
        offset: at,
        what: what(&error),
    })
}

fn sentence(e: &DataFusionError) -> String {
    let message = e.find_root().message().to_string();
    message
        .lines()
        .next()
        .unwrap_or_default()
        .trim_end_matches('.')
        .to_string()
}

fn what(e: &DataFusionError) -> What {
    if let DataFusionError::SchemaError(schema, _) = e.find_root()
        && let SchemaError::FieldNotFound { field, .. } = schema.as_ref()
    {
        return What::Column(field.name.clone());
    }
    let message = sentence(e);
    match message
        .strip_prefix("Invalid function '")
        .and_then(|m| m.strip_suffix('\''))
    {
        Some(name) => What::Function(name.to_string()),
        None => What::Other(message),
    }
}

/// Coerces types and simplifies; some functions exist only until they are simplified.
pub(super) fn prepare(expr: Expr, schema: &DFSchema) -> Result<Expr> {
    let simplifier = simplifier(schema);
    let expr = simplifier.coerce(expr, schema)?;
    simplifier.simplify(expr)
}

fn simplifier(schema: &DFSchema) -> ExprSimplifier {
    let context = SimplifyContext::builder()
        .with_schema(Arc::new(schema.clone()))
        .with_current_time()
        .build();
    ExprSimplifier::new(context)
}

/// The expression over batches of a schema. Whole numbers that overflow are an error, never another number.
pub(super) fn physical(expr: &Expr, schema: &Schema) -> Result<Arc<dyn PhysicalExpr>> {
    let schema = DFSchema::try_from(schema.clone())?;
    let physical = create_physical_expr(
        expr,
        &schema,
        &ExecutionProps::new(),
        &PhysicalPlanningContext::default(),
    )?;
    physical
        .transform_up(|e| {
            Ok(match e.downcast_ref::<BinaryExpr>() {
                Some(b) => {
                    let checked = BinaryExpr::new(b.left().clone(), *b.op(), b.right().clone());
                    Transformed::yes(Arc::new(checked.with_fail_on_overflow(true)) as Arc<dyn PhysicalExpr>)
                }
                None => Transformed::no(e),
            })
        })
        .data()
}
