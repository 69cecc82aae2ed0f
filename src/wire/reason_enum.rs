//! A macro for enums whose variants are the values of a `reason` metric label.

/// Defines an enum with `ALL`, `COUNT`, `label()` and `meaning()`.
///
/// The doc comment of each variant is also the text that `meaning()` returns.
macro_rules! reason_enum {
    (
        $(#[doc = $enum_doc:literal])+
        enum $Enum:ident;
        $($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+
    ) => {
        $(#[doc = $enum_doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $Enum { $($(#[doc = $doc])+ $name,)+ }

        impl $Enum {
            /// All reasons, in the order of their discriminants.
            pub const ALL: &'static [$Enum] = &[$($Enum::$name,)+];

            /// The number of reasons.
            pub const COUNT: usize = Self::ALL.len();

            /// Returns the value of the metric label.
            pub fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// Returns a one-sentence explanation for users.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc,)+).trim_ascii(),)+ }
            }
        }
    };
}

pub(crate) use reason_enum;
