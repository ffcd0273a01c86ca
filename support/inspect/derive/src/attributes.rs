//! The words in `#[inspect(…)]`.

use proc_macro2::TokenStream;
use quote::format_ident;
use quote::quote;
use syn::Attribute;
use syn::Expr;
use syn::LitStr;
use syn::Result;
use syn::meta::ParseNestedMeta;

/// Signs of the units, and the names of `inspect::Unit`.
const UNITS: [(&str, &str); 9] = [
    ("bytes", "Bytes"),
    ("pages", "Pages"),
    ("ns", "Nanoseconds"),
    ("us", "Microseconds"),
    ("ms", "Milliseconds"),
    ("s", "Seconds"),
    ("100ns", "ReferenceTicks"),
    ("Hz", "Hertz"),
    ("%", "Percent"),
];

/// How a value is looked at.
#[derive(Default)]
pub(crate) enum View {
    #[default]
    Itself,
    Debug,
    Display,
    With(Box<Expr>),
}

/// Who may see something.
#[derive(Clone)]
pub(crate) enum Level {
    Safe,
    Sensitive,
}

/// What was said about a type, a field or a variant.
#[derive(Default)]
pub(crate) struct Attributes {
    pub(crate) skip: bool,
    pub(crate) flatten: bool,
    pub(crate) transparent: bool,
    pub(crate) rename: Option<String>,
    pub(crate) view: View,
    pub(crate) level: Option<Level>,
    pub(crate) extra: Option<Expr>,
    hex: bool,
    binary: bool,
    counter: bool,
    unit: Option<&'static str>,
}

impl Attributes {
    pub(crate) fn of_type(attributes: &[Attribute]) -> Result<Self> {
        let words = [
            "transparent",
            "debug",
            "display",
            "safe",
            "sensitive",
            "extra",
        ];
        Self::parse(attributes, &words)
    }

    pub(crate) fn of_field(attributes: &[Attribute]) -> Result<Self> {
        let words = [
            "skip",
            "rename",
            "flatten",
            "hex",
            "binary",
            "counter",
            "unit",
            "debug",
            "display",
            "with",
            "safe",
            "sensitive",
        ];
        Self::parse(attributes, &words)
    }

    pub(crate) fn of_variant(attributes: &[Attribute]) -> Result<Self> {
        Self::parse(attributes, &["rename"])
    }

    /// The format of numbers, if one was named.
    pub(crate) fn format(&self) -> Option<TokenStream> {
        if !self.hex && !self.binary && !self.counter && self.unit.is_none() {
            return None;
        }
        let radix = match (self.hex, self.binary) {
            (true, _) => quote!(::inspect::Radix::Hex),
            (_, true) => quote!(::inspect::Radix::Binary),
            _ => quote!(::inspect::Radix::Decimal),
        };
        let counter = self.counter;
        let unit = format_ident!("{}", self.unit.unwrap_or("None"));
        Some(quote! {
            ::inspect::Format { radix: #radix, counter: #counter, unit: ::inspect::Unit::#unit }
        })
    }

    fn parse(attributes: &[Attribute], allowed: &[&str]) -> Result<Self> {
        let mut parsed = Self::default();
        for attribute in attributes {
            if attribute.path().is_ident("inspect") {
                attribute.parse_nested_meta(|meta| parsed.word(&meta, allowed))?;
            }
        }
        Ok(parsed)
    }

    fn word(&mut self, meta: &ParseNestedMeta<'_>, allowed: &[&str]) -> Result<()> {
        let Some(word) = allowed.iter().find(|word| meta.path.is_ident(word)) else {
            let message = format!("unknown word, expected one of: {}", allowed.join(", "));
            return Err(meta.error(message));
        };
        match *word {
            "skip" => self.skip = true,
            "flatten" => self.flatten = true,
            "transparent" => self.transparent = true,
            "hex" => self.hex = true,
            "binary" => self.binary = true,
            "counter" => self.counter = true,
            "debug" => self.view = View::Debug,
            "display" => self.view = View::Display,
            "safe" => self.level = Some(Level::Safe),
            "sensitive" => self.level = Some(Level::Sensitive),
            "rename" => self.rename = Some(text(meta)?.value()),
            "with" => self.view = View::With(Box::new(text(meta)?.parse()?)),
            "extra" => self.extra = Some(text(meta)?.parse()?),
            "unit" => self.unit = Some(unit(&text(meta)?)?),
            other => return Err(meta.error(format!("{other} is not handled"))),
        }
        Ok(())
    }
}

fn text(meta: &ParseNestedMeta<'_>) -> Result<LitStr> {
    meta.value()?.parse()
}

fn unit(sign: &LitStr) -> Result<&'static str> {
    let wanted = sign.value();
    UNITS
        .iter()
        .find(|(sign, _)| *sign == wanted)
        .map(|(_, name)| *name)
        .ok_or_else(|| {
            let signs: Vec<_> = UNITS.iter().map(|(sign, _)| *sign).collect();
            let message = format!(
                "unknown unit {wanted:?}, expected one of: {}",
                signs.join(", ")
            );
            syn::Error::new(sign.span(), message)
        })
}
