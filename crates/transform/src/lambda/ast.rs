//! The tree of a lambda.

/// A node and the byte offset where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) at: usize,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    None,
    Bool(bool),
    /// Digits.
    Int(String),
    /// As written.
    Float(String),
    Text(String),
    Column(String),
    Negate(Box<Node>),
    Plus(Box<Node>),
    Not(Box<Node>),
    Binary(Arithmetic, Box<Node>, Box<Node>),
    /// `a < b <= c`: the first operand and the others with their operators.
    Compare(Box<Node>, Vec<(Comparison, Node)>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    If {
        test: Box<Node>,
        then: Box<Node>,
        otherwise: Box<Node>,
    },
    Format(Vec<Piece>),
    Method(Box<Node>, String, Vec<Node>),
    Call(String, Vec<Node>),
    Index(Box<Node>, Box<Node>),
    Slice(Box<Node>, Option<Box<Node>>, Option<Box<Node>>),
    /// A list or tuple.
    List(Vec<Node>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
    Power,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Is,
    IsNot,
    In,
    NotIn,
}

/// A piece of an f-string.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    Text(String),
    Value(Node, Style),
}

/// How a value is printed in an f-string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    /// `:.2f`
    Fixed(u8),
    /// `:05d`
    Padded(u8),
}

impl Node {
    /// The columns it reads.
    #[cfg(feature = "datafusion")]
    pub(crate) fn columns(&self, into: &mut Vec<String>) {
        match &self.kind {
            Kind::None | Kind::Bool(_) | Kind::Int(_) | Kind::Float(_) | Kind::Text(_) => {}
            Kind::Column(name) => into.push(name.clone()),
            Kind::Negate(a) | Kind::Plus(a) | Kind::Not(a) => a.columns(into),
            Kind::Binary(_, a, b) | Kind::And(a, b) | Kind::Or(a, b) | Kind::Index(a, b) => {
                a.columns(into);
                b.columns(into);
            }
            Kind::Compare(first, rest) => {
                first.columns(into);
                rest.iter().for_each(|(_, n)| n.columns(into));
            }
            Kind::If { test, then, otherwise } => [test, then, otherwise].iter().for_each(|n| n.columns(into)),
            Kind::Format(pieces) => pieces.iter().for_each(|p| {
                if let Piece::Value(n, _) = p {
                    n.columns(into);
                }
            }),
            Kind::Method(of, _, args) => {
                of.columns(into);
                args.iter().for_each(|n| n.columns(into));
            }
            Kind::Call(_, args) | Kind::List(args) => args.iter().for_each(|n| n.columns(into)),
            Kind::Slice(of, from, to) => {
                of.columns(into);
                [from, to].into_iter().flatten().for_each(|n| n.columns(into));
            }
        }
    }
}
