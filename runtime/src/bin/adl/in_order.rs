//! Options of several names that make one list, in the order in which they were given.

use std::marker::PhantomData;

use clap::{ArgMatches, Args, Command, Error, FromArgMatches};

/// The values of the options that `A` has, all of which are of type `T`.
pub(crate) struct InOrder<A, T> {
    pub(crate) values: Vec<T>,
    options: PhantomData<A>,
}

impl<A: Args, T: Clone + Send + Sync + 'static> Args for InOrder<A, T> {
    fn augment_args(command: Command) -> Command {
        A::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        A::augment_args_for_update(command)
    }
}

impl<A: Args, T: Clone + Send + Sync + 'static> FromArgMatches for InOrder<A, T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut found = Vec::new();
        for id in matches.ids().map(clap::Id::as_str) {
            // What has another type is another option, or a group.
            if let Ok(Some(values)) = matches.try_get_many::<T>(id) {
                found.extend(matches.indices_of(id).into_iter().flatten().zip(values.cloned()));
            }
        }
        found.sort_by_key(|(index, _)| *index);
        let values = found.into_iter().map(|(_, value)| value).collect();
        Ok(Self { values, options: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
