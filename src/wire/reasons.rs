//! Enums whose variants are the `reason` labels of a metric.

/// Makes an enum with `ALL`, `COUNT`, `label()` and `meaning()`; the comment of each variant is
/// its meaning.
macro_rules! reasons {
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
            /// All reasons; the position of each is its number.
            pub const ALL: &'static [$Enum] = &[$($Enum::$name,)+];

            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The metrics label.
            pub fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// One sentence for a person.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc,)+).trim_ascii(),)+ }
            }
        }
    };
}

pub(crate) use reasons;
