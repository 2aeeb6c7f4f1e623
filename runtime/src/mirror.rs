//! Enums of the API that the wire has, too: what is public can stay while the wire changes.

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

        impl From<adl_protocol::$name> for $name {
            fn from(wire: adl_protocol::$name) -> Self {
                match wire {
                    $(adl_protocol::$name::$variant => Self::$variant,)+
                }
            }
        }

        impl From<$name> for adl_protocol::$name {
            fn from(this: $name) -> Self {
                match this {
                    $($name::$variant => Self::$variant,)+
                }
            }
        }
    };
}

pub(crate) use mirror;
