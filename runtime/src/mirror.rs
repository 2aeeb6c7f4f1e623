//! The macro that defines a public enum with the variants of one of the wire's.
//!
//! What is public can stay while the wire changes.

/// Defines an enum, and how it is made of the wire's of the same name and variants, and the other
/// way.
macro_rules! mirror {
    ($(#[$of_enum:meta])* pub enum $name:ident {
        $($(#[$of_variant:meta])* $variant:ident,)+
    }) => {
        $(#[$of_enum])*
        pub enum $name {
            $($(#[$of_variant])* $variant,)+
        }

        // No `From`: that would be public.
        impl $name {
            #[allow(dead_code, reason = "some come from the wire alone")]
            pub(crate) fn from_wire(wire: adl_protocol::$name) -> Self {
                match wire {
                    $(adl_protocol::$name::$variant => Self::$variant,)+
                }
            }

            #[allow(dead_code, reason = "some go to the wire alone")]
            pub(crate) fn to_wire(self) -> adl_protocol::$name {
                match self {
                    $($name::$variant => adl_protocol::$name::$variant,)+
                }
            }
        }
    };
}

pub(crate) use mirror;
