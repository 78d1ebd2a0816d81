//! The vector of the suite, and the sender's side for other tests.

use super::*;
use crate::testing::{hex_field, unhex};

/// A sender, to test receivers.
pub struct Sender {
    pub enc: [u8; PUBLIC_SIZE],
    schedule: Schedule,
}

impl Sender {
    /// RFC 9180's SetupBaseS with a fresh pair.
    pub fn new(public: &[u8; PUBLIC_SIZE], info: &[u8]) -> Self {
        Self::with(KeyPair::generate().expect("generates"), public, info)
    }

    fn with(pair: KeyPair, public: &[u8; PUBLIC_SIZE], info: &[u8]) -> Self {
        let peer = UnparsedPublicKey::new(&X25519, public);
        let secret = agreement::agree(&pair.private, peer, (), |dh| {
            shared_secret(dh, &pair.public, public).ok_or(())
        });
        let schedule = Schedule::new(&secret.expect("agrees"), info).expect("is short");
        Sender {
            enc: pair.public,
            schedule,
        }
    }

    /// The encapsulated key, the ciphertext and the tag.
    pub fn seal(&self, aad: &[u8], plain: &[u8]) -> Vec<u8> {
        let mut sealed = plain.to_vec();
        let key = self.schedule.key().expect("derives");
        let nonce = self.schedule.nonce().expect("derives");
        key.seal_in_place_append_tag(nonce, Aad::from(aad), &mut sealed)
            .expect("seals");
        [&self.enc[..], &sealed].concat()
    }

    /// What an answer holds.
    pub fn open(&self, label: &[u8], answer: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = answer.split_at_checked(NONCE_SIZE)?;
        let exchange = Exchange {
            enc: self.enc,
            schedule: Schedule {
                secret: self.schedule.secret.clone(),
                context: self.schedule.context.clone(),
            },
        };
        let (key, base) = exchange.answer_key(label, nonce)?;
        let mut plain = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(base);
        let size = key
            .open_in_place(nonce, Aad::empty(), &mut plain)
            .ok()?
            .len();
        plain.truncate(size);
        Some(plain)
    }
}

fn pair(hex: &str) -> KeyPair {
    let private = PrivateKey::from_private_key(&X25519, &unhex(hex)).expect("is a key");
    KeyPair::of(private).expect("has a public key")
}

const INFO: &str = "4f6465206f6e2061204772656369616e2055726e";
const PLAIN: &[u8] = b"Beauty is truth, truth beauty";
const SEALED: &str = "e5d84cd531cfb583096e7cfa9641bd3079cf3a91cda813c52deb5f512be9931980a41de1\
                      25a925cdad859d5b7a";

/// Of the vectors that the RFC points to: mode 0, KEM 0x0020, KDF 0x0001, AEAD 0x0002. What it
/// exports was computed with another implementation.
#[test]
fn the_vector_opens() {
    let receiver = pair("497b4502664cfea5d5af0b39934dac72242a74f8480451e1aee7d6a53320333d");
    let public = unhex("430f4b9859665145a6b1ba274024487bd66f03a2dd577d7753c68d7d7d00c00c");
    assert_eq!(receiver.public()[..], public);
    let enc = unhex("6c93e09869df3402d7bf231bf540fadd35cd56be14f97178f0954db94b7fc256");
    let enc = enc.try_into().expect("has 32 bytes");
    let mut sealed = unhex(SEALED);
    let (plain, exchange) = receiver
        .open(&enc, &unhex(INFO), b"Count-0", &mut sealed)
        .expect("opens");
    assert_eq!(plain, PLAIN);
    let exports = [
        (
            &b""[..],
            "ded6cffafaea6b812cbf3e241e88332adbc077aca81512914213810ee291770a",
        ),
        (
            b"\0",
            "04d3cb6cc116b28ffd22ad5bc276c60d31fec71ceb87ae24db811c64b7507339",
        ),
        (
            b"TestContext",
            "7c5ded445732c14fe09727d29b4251c0fd38455fe8440571e687f0886aac94d2",
        ),
    ];
    for (context, value) in exports {
        let exported = exchange.schedule.export(context).expect("exports");
        assert_eq!(exported[..], unhex(value));
    }
}

#[test]
fn the_vector_is_sealed() {
    let ephemeral = pair("179d4b53b6365c45b600c4163b61d95cbc2f4d9e36f1695558dce265ab8bab11");
    let receiver = pair("497b4502664cfea5d5af0b39934dac72242a74f8480451e1aee7d6a53320333d");
    let sender = Sender::with(ephemeral, receiver.public(), &unhex(INFO));
    let sealed = sender.seal(b"Count-0", PLAIN);
    assert_eq!(sealed[32..], unhex(SEALED));
}

/// Those of `docs/messages.md`.
#[test]
fn the_vectors_of_our_messages_open() {
    let all = include_str!("../../../tests/vectors/messages.json");
    let key = |name: &str| {
        let private = PrivateKey::from_private_key(&X25519, &hex_field(all, name));
        KeyPair::of(private.expect("is a key")).expect("has a public key")
    };
    let (receiver, ephemeral) = (key("private_key"), key("ephemeral_private_key"));
    assert_eq!(receiver.public()[..], hex_field(all, "public_key"));
    let digest = hex_field(all, "model_digest");
    let open = |mut sealed: Vec<u8>, info: &[u8], aad: &[u8]| {
        let (enc, rest) = sealed.split_first_chunk_mut().expect("is long enough");
        let (plain, _) = receiver.open(enc, info, aad, rest).expect("opens");
        plain.to_vec()
    };
    let sealed = hex_field(all, "sealed_model_key");
    let model_key = open(sealed, b"vessels key v1", &digest);
    assert_eq!(model_key, hex_field(all, "model_key"));

    let info = [b"vessels request v1", &digest[..]].concat();
    let request = &all[all.find("\"predict\"").expect("is there")..];
    let content = open(hex_field(request, "sealed"), &info, b"");
    assert_eq!(content, hex_field(request, "content"));

    let sender = Sender::with(ephemeral, receiver.public(), &info);
    let responses = &all[all.find("\"responses\"").expect("is there")..];
    let opened = sender.open(b"vessels response v1", &hex_field(responses, "sealed"));
    assert_eq!(opened, Some(hex_field(responses, "content")));
}

#[test]
fn an_answer_answers_its_exchange_alone() {
    let receiver = KeyPair::generate().expect("generates");
    let answer = |sender: &Sender| {
        let mut sealed = sender.seal(b"", b"question");
        let (enc, rest) = sealed.split_first_chunk_mut().expect("is long enough");
        let (_, exchange) = receiver.open(enc, b"info", b"", rest).expect("opens");
        let mut answer = [&[0; NONCE_SIZE][..], b"reply", &[0; TAG_SIZE]].concat();
        let (nonce, sealed) = answer.split_first_chunk_mut().expect("is long enough");
        let (plain, tag) = sealed.split_last_chunk_mut().expect("is long enough");
        exchange
            .answer(b"label", nonce, plain, tag)
            .expect("answers");
        answer
    };
    let first = Sender::new(receiver.public(), b"info");
    let second = Sender::new(receiver.public(), b"info");
    let answered = answer(&first);
    assert_eq!(first.open(b"label", &answered), Some(b"reply".to_vec()));
    assert_ne!(answer(&first), answered);
    assert_eq!(second.open(b"label", &answered), None);
    assert_eq!(first.open(b"other", &answered), None);
    for index in 0..answered.len() {
        let mut altered = answered.clone();
        altered[index] ^= 1;
        assert_eq!(first.open(b"label", &altered), None);
    }
}

#[test]
fn anything_else_does_not_open() {
    let receiver = KeyPair::generate().expect("generates");
    let other = KeyPair::generate().expect("generates");
    let sealed = Sender::new(receiver.public(), b"info").seal(b"aad", b"plain");
    let opens = |pair: &KeyPair, info: &[u8], aad: &[u8], message: &[u8]| {
        let mut message = message.to_vec();
        message
            .split_first_chunk_mut()
            .is_some_and(|(enc, rest)| pair.open(enc, info, aad, rest).is_some())
    };
    assert!(opens(&receiver, b"info", b"aad", &sealed));
    assert!(!opens(&other, b"info", b"aad", &sealed));
    assert!(!opens(&receiver, b"inf", b"aad", &sealed));
    assert!(!opens(&receiver, b"info", b"", &sealed));
    for size in 0..sealed.len() {
        assert!(!opens(&receiver, b"info", b"aad", &sealed[..size]));
    }
    for index in 0..sealed.len() {
        let mut altered = sealed.clone();
        altered[index] ^= 1;
        assert!(!opens(&receiver, b"info", b"aad", &altered), "byte {index}");
    }
}

/// Points of small order make the shared secret zero, whoever receives.
#[test]
fn points_of_small_order_are_refused() {
    let receiver = KeyPair::generate().expect("generates");
    let one = [&[1][..], &[0; 31]].concat();
    let order_eight = unhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800");
    for point in [vec![0; 32], one, order_eight] {
        let enc = point.try_into().expect("has 32 bytes");
        assert!(receiver.open(&enc, b"", b"", &mut [0; 32]).is_none());
    }
}
