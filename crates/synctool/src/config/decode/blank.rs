//! A value for a key that is missing, of whatever type is asked for: with it decoding goes on and finds the mistakes
//! that come after. What was decoded is thrown away in the end, since a mistake was found.

use serde::de::value::{MapDeserializer, SeqDeserializer, StrDeserializer};
use serde::de::{DeserializeSeed, EnumAccess, IntoDeserializer, SeqAccess, VariantAccess, Visitor};
use serde::{Deserializer, forward_to_deserialize_any};

use super::{AT, Origin, Stop, origin_of};

/// Nothing in particular.
#[derive(Clone, Copy)]
pub(super) struct Blank<'a>(pub(super) &'a Origin);

impl<'de> IntoDeserializer<'de, Stop> for Blank<'_> {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! plain {
    ($($method:ident $visit:ident $value:expr),*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
            visitor.$visit($value)
        })*
    };
}

impl<'de> Deserializer<'de> for Blank<'_> {
    type Error = Stop;

    plain! {
        deserialize_bool visit_bool false, deserialize_u64 visit_u64 0, deserialize_i64 visit_i64 0,
        deserialize_f64 visit_f64 0.0, deserialize_char visit_char ' ', deserialize_str visit_str "",
        deserialize_string visit_str ""
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        // Types that look at what is there: text satisfies most, and the others end the attempt.
        visitor.visit_u64(0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_none()
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_seq(SeqDeserializer::new(std::iter::empty::<Blank<'_>>()))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_map(MapDeserializer::new(std::iter::empty::<(&str, Blank<'_>)>()))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        visitor.visit_map(MapDeserializer::new(fields.iter().map(|field| (*field, self))))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        visitor.visit_enum(BlankVariant(variants.first().copied().unwrap_or_default(), self))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Stop> {
        match name {
            AT => visitor.visit_seq(BlankPair { step: 0, blank: self }),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u32 u128 f32 bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

struct BlankPair<'a> {
    step: u8,
    blank: Blank<'a>,
}

impl<'de> SeqAccess<'de> for BlankPair<'_> {
    type Error = Stop;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Stop> {
        self.step += 1;
        match self.step {
            1 => origin_of(self.blank.0, seed).map(Some),
            2 => seed.deserialize(self.blank).map(Some),
            _ => Ok(None),
        }
    }
}

struct BlankVariant<'a>(&'static str, Blank<'a>);

impl<'de, 'a> EnumAccess<'de> for BlankVariant<'a> {
    type Error = Stop;
    type Variant = Blank<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Blank<'a>), Stop> {
        let name: StrDeserializer<'_, Stop> = self.0.into_deserializer();
        seed.deserialize(name).map(|value| (value, self.1))
    }
}

impl<'de> VariantAccess<'de> for Blank<'_> {
    type Error = Stop;

    fn unit_variant(self) -> Result<(), Stop> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Stop> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_struct("", fields, visitor)
    }
}
