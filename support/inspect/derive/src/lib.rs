//! `#[derive(Inspect)]` of the `inspect` crate, which re-exports and explains it.
//!
//! A structure becomes a directory of its fields. An enumeration without data becomes the
//! name of its variant in `snake_case`; one with data, a directory with the name of the
//! variant in `variant` and the fields.
//!
//! Of the type, with `#[inspect(…)]`:
//!
//! - `transparent`: is what its only field (that is not skipped) is;
//! - `debug`, `display`: is a text;
//! - `safe`, `sensitive`: all fields are, unless they say otherwise;
//! - `extra = "function"`: `fn(&Self, &mut Response<'_>)` adds more entries, and says
//!   itself who may see them.
//!
//! Of a field:
//!
//! - `skip`; `rename = "name"`; `flatten`: its entries become those of this directory;
//! - `hex`, `binary`, `counter`, `unit = "bytes"` (any sign of `inspect::Unit`): how numbers
//!   are printed, also those inside;
//! - `debug`, `display`: its text;
//! - `with = "function"`: `Fn(&Field) -> impl Inspect`, a path or a closure;
//! - `safe`, `sensitive`: who may see it.
//!
//! Of a variant: `rename = "name"`.

mod attributes;

use attributes::Attributes;
use attributes::Level;
use attributes::View;
use proc_macro2::TokenStream;
use quote::format_ident;
use quote::quote;
use syn::Data;
use syn::DataEnum;
use syn::DeriveInput;
use syn::Field;
use syn::Fields;
use syn::Ident;
use syn::Result;
use syn::ext::IdentExt;
use syn::parse_macro_input;
use syn::parse_quote;

/// Derives `inspect::Inspect`.
#[proc_macro_derive(Inspect, attributes(inspect))]
pub fn derive(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand(input)
        .unwrap_or_else(|error| error.to_compile_error())
        .into()
}

fn expand(mut input: DeriveInput) -> Result<TokenStream> {
    let attributes = Attributes::of_type(&input.attrs)?;
    let body = match (&attributes.view, &input.data) {
        (View::Debug, _) => quote!(request.value(::std::format!("{self:?}"));),
        (View::Display, _) => quote!(request.value(::std::string::ToString::to_string(self));),
        (_, Data::Struct(data)) => {
            let (pattern, fields) = bind(&data.fields)?;
            let answer = match attributes.transparent {
                true => transparent(&input.ident, &fields)?,
                false => directory(&fields, &attributes, None),
            };
            quote! {
                let Self #pattern = self;
                #answer
            }
        }
        (_, Data::Enum(data)) => enumeration(data, &attributes)?,
        (_, Data::Union(data)) => {
            let message = "Inspect cannot be derived for a union: no field is known to be valid";
            return Err(syn::Error::new(data.union_token.span, message));
        }
    };
    let bound = match attributes.view {
        View::Debug => quote!(::core::fmt::Debug),
        View::Display => quote!(::core::fmt::Display),
        _ => quote!(::inspect::Inspect),
    };
    for parameter in input.generics.type_params_mut() {
        parameter.bounds.push(parse_quote!(#bound));
    }
    let name = &input.ident;
    let (parameters, arguments, clause) = input.generics.split_for_impl();
    Ok(quote! {
        impl #parameters ::inspect::Inspect for #name #arguments #clause {
            fn inspect(&self, request: ::inspect::Request<'_>) {
                #body
            }
        }
    })
}

/// A field, bound to a variable by a pattern.
struct Bound {
    variable: Ident,
    name: String,
    attributes: Attributes,
}

/// A pattern that binds the fields that are shown, and those.
fn bind(fields: &Fields) -> Result<(TokenStream, Vec<Bound>)> {
    let mut bound = Vec::new();
    let mut patterns = Vec::new();
    for (index, field) in fields.iter().enumerate() {
        let attributes = Attributes::of_field(&field.attrs)?;
        let variable = format_ident!("field_{index}");
        let shown = !attributes.skip;
        patterns.push(match (&field.ident, shown) {
            (Some(name), true) => quote!(#name: #variable),
            (Some(name), false) => quote!(#name: _),
            (None, true) => quote!(#variable),
            (None, false) => quote!(_),
        });
        if shown {
            bound.push(Bound {
                name: entry_name(field, index, &attributes),
                variable,
                attributes,
            });
        }
    }
    let pattern = match fields {
        Fields::Named(_) => quote!({ #(#patterns),* }),
        Fields::Unnamed(_) => quote!((#(#patterns),*)),
        Fields::Unit => quote!(),
    };
    Ok((pattern, bound))
}

fn entry_name(field: &Field, index: usize, attributes: &Attributes) -> String {
    match (&attributes.rename, &field.ident) {
        (Some(name), _) => name.clone(),
        (None, Some(name)) => name.unraw().to_string(),
        (None, None) => index.to_string(),
    }
}

/// Statements that answer with a directory of the fields.
fn directory(fields: &[Bound], attributes: &Attributes, variant: Option<&str>) -> TokenStream {
    let of_type = attributes.level.clone();
    let mut statements = Vec::new();
    if let Some(variant) = variant {
        let level = level_tokens(of_type.as_ref());
        statements.push(quote!(response.sensitivity(#level).field("variant", #variant);));
    }
    for field in fields {
        let level = level_tokens(field.attributes.level.as_ref().or(of_type.as_ref()));
        let name = &field.name;
        let value = view(field);
        let format = field.attributes.format();
        statements.push(match (field.attributes.flatten, format) {
            (true, _) => quote!(response.merge(&#value);),
            (false, Some(format)) => {
                quote!(response.sensitivity(#level).formatted(#name, #format, &#value);)
            }
            (false, None) => quote!(response.sensitivity(#level).field(#name, &#value);),
        });
    }
    let extra = attributes.extra.as_ref().map(|function| {
        let unsaid = level_tokens(None);
        quote!((#function)(self, response.sensitivity(#unsaid));)
    });
    quote! {
        #[allow(unused_mut)]
        let mut response = request.respond();
        #(#statements)*
        #extra
    }
}

fn level_tokens(level: Option<&Level>) -> TokenStream {
    match level {
        Some(Level::Safe) => quote!(::inspect::Sensitivity::Safe),
        Some(Level::Sensitive) => quote!(::inspect::Sensitivity::Sensitive),
        None => quote!(::inspect::Sensitivity::Unspecified),
    }
}

/// An expression that can be inspected.
fn view(field: &Bound) -> TokenStream {
    let variable = &field.variable;
    match &field.attributes.view {
        View::Itself => quote!(*#variable),
        View::Debug => quote!(::inspect::AsDebug(#variable)),
        View::Display => quote!(::inspect::AsDisplay(#variable)),
        View::With(function) => quote!((#function)(#variable)),
    }
}

fn transparent(name: &Ident, fields: &[Bound]) -> Result<TokenStream> {
    let [field] = fields else {
        let message = format!(
            "a transparent type has one field that is not skipped, this one has {}",
            fields.len()
        );
        return Err(syn::Error::new(name.span(), message));
    };
    let value = view(field);
    let format = field
        .attributes
        .format()
        .map(|format| quote!(let request = request.format(#format);));
    Ok(quote! {
        #format
        ::inspect::Inspect::inspect(&#value, request)
    })
}

fn enumeration(data: &DataEnum, attributes: &Attributes) -> Result<TokenStream> {
    if data.variants.is_empty() {
        return Ok(quote!(let _ = request; match *self {}));
    }
    let plain = data
        .variants
        .iter()
        .all(|variant| matches!(variant.fields, Fields::Unit));
    let mut arms = Vec::new();
    for variant in &data.variants {
        let ident = &variant.ident;
        let name = Attributes::of_variant(&variant.attrs)?
            .rename
            .unwrap_or_else(|| snake_case(&ident.unraw().to_string()));
        if plain {
            arms.push(quote!(Self::#ident => request.value(#name)));
            continue;
        }
        let (pattern, fields) = bind(&variant.fields)?;
        let answer = directory(&fields, attributes, Some(&name));
        arms.push(quote!(Self::#ident #pattern => { #answer }));
    }
    Ok(quote!(match self { #(#arms),* }))
}

fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for (index, c) in name.char_indices() {
        if c.is_uppercase() && index > 0 {
            snake.push('_');
        }
        snake.extend(c.to_lowercase());
    }
    snake
}
