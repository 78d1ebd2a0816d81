//! HPKE (RFC 9180) in base mode, the receiver's side, of one suite: X25519, HKDF-SHA256,
//! AES-256-GCM; and answers keyed from the exchange, as Oblivious HTTP (RFC 9458) keys them.
//!
//! A message is one encapsulated key and one ciphertext, so each context opens once and its
//! sequence number is 0 by construction.

use crate::refusal::Refusal;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::{hmac, rand};
use zeroize::Zeroizing;

/// Identifiers of KEM, KDF and AEAD.
pub const SUITE: [u8; 6] = [0x00, 0x20, 0x00, 0x01, 0x00, 0x02];
/// Bytes of a public key, and of an encapsulated one.
pub const PUBLIC_SIZE: usize = 32;
pub const TAG_SIZE: usize = 16;
/// Bytes of the random part of an answer's key.
pub const NONCE_SIZE: usize = 32;

const KEM_SUITE: &[u8] = b"KEM\x00\x20";
const SCHEDULE_SUITE: &[u8] = b"HPKE\x00\x20\x00\x01\x00\x02";
const MODE_BASE: &[u8] = &[0];
/// The longest input of one HMAC here is some 130 bytes.
const MAC_SIZE: usize = 192;

type Secret = Zeroizing<[u8; 32]>;

/// An enclave's own key pair; the private key leaves it for nobody.
pub struct KeyPair {
    private: PrivateKey,
    public: [u8; PUBLIC_SIZE],
}

/// What remains of an exchange that was opened: the secret from which its answer is keyed.
pub struct Exchange {
    enc: [u8; PUBLIC_SIZE],
    schedule: Schedule,
}

impl KeyPair {
    /// A new pair from the system's random numbers.
    pub fn generate() -> Result<Self, Refusal> {
        PrivateKey::generate(&X25519)
            .ok()
            .and_then(Self::of)
            .ok_or(Refusal::System {
                what: "making a key pair",
                errno: 0,
            })
    }

    fn of(private: PrivateKey) -> Option<Self> {
        let public = private.compute_public_key().ok()?;
        let public = public.as_ref().try_into().ok()?;
        Some(KeyPair { private, public })
    }

    pub fn public(&self) -> &[u8; PUBLIC_SIZE] {
        &self.public
    }

    /// Opens in place what was sealed to this pair: ciphertext, then tag. `None`, and nothing
    /// else, whatever is wrong with it.
    pub fn open<'m>(
        &self,
        enc: &[u8; PUBLIC_SIZE],
        info: &[u8],
        aad: &[u8],
        sealed: &'m mut [u8],
    ) -> Option<(&'m mut [u8], Exchange)> {
        // The library refuses a point that makes the shared secret zero, as the RFC asks for.
        let shared = agreement::agree(
            &self.private,
            UnparsedPublicKey::new(&X25519, enc),
            (),
            |dh| shared_secret(dh, enc, &self.public).ok_or(()),
        );
        let schedule = Schedule::new(&shared.ok()?, info)?;
        let plain = schedule
            .key()?
            .open_in_place(schedule.nonce()?, Aad::from(aad), sealed)
            .ok()?;
        Some((
            plain,
            Exchange {
                enc: *enc,
                schedule,
            },
        ))
    }
}

impl Exchange {
    /// Seals the answer in place: `nonce` and `tag` are written, `plain` is encrypted.
    pub fn answer(
        &self,
        label: &[u8],
        nonce: &mut [u8; NONCE_SIZE],
        plain: &mut [u8],
        tag: &mut [u8; TAG_SIZE],
    ) -> Option<()> {
        rand::fill(nonce).ok()?;
        let (key, base) = self.answer_key(label, nonce)?;
        let made = key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(base), Aad::empty(), plain)
            .ok()?;
        tag.copy_from_slice(made.as_ref());
        Some(())
    }

    /// RFC 9458, section 4.4, with `label` for its media type.
    fn answer_key(&self, label: &[u8], nonce: &[u8]) -> Option<(LessSafeKey, [u8; 12])> {
        let secret = self.schedule.export(label)?;
        let mut salt = [0; PUBLIC_SIZE + NONCE_SIZE];
        let (front, back) = salt.split_at_mut(PUBLIC_SIZE);
        front.copy_from_slice(&self.enc);
        back.copy_from_slice(nonce);
        let prk = mac(&salt, &[secret.as_ref()])?;
        let key = expand(&prk, &[b"key"])?;
        let nonce = expand(&prk, &[b"nonce"])?;
        Some((cipher(&key)?, *nonce.first_chunk()?))
    }
}

/// RFC 9180's key schedule.
struct Schedule {
    secret: Secret,
    context: Zeroizing<[u8; 65]>,
}

impl Schedule {
    fn new(shared_secret: &Secret, info: &[u8]) -> Option<Self> {
        let psk_id_hash = labeled_extract(SCHEDULE_SUITE, &[], b"psk_id_hash", &[])?;
        let info_hash = labeled_extract(SCHEDULE_SUITE, &[], b"info_hash", info)?;
        let mut context = Zeroizing::new([0; 65]);
        let parts = [MODE_BASE, psk_id_hash.as_ref(), info_hash.as_ref()];
        for (place, byte) in context.iter_mut().zip(parts.into_iter().flatten()) {
            *place = *byte;
        }
        let secret = labeled_extract(SCHEDULE_SUITE, shared_secret.as_ref(), b"secret", &[])?;
        Some(Schedule { secret, context })
    }

    fn key(&self) -> Option<LessSafeKey> {
        cipher(&self.expand(b"key", 32)?)
    }

    /// The base nonce, which is that of sequence number 0.
    fn nonce(&self) -> Option<Nonce> {
        let nonce = self.expand(b"base_nonce", 12)?;
        Some(Nonce::assume_unique_for_key(*nonce.first_chunk()?))
    }

    /// 32 bytes for the exporter context `label`.
    fn export(&self, label: &[u8]) -> Option<Secret> {
        let exporter = self.expand(b"exp", 32)?;
        labeled_expand(SCHEDULE_SUITE, &exporter, b"sec", label, 32)
    }

    fn expand(&self, label: &[u8], size: u8) -> Option<Secret> {
        labeled_expand(
            SCHEDULE_SUITE,
            &self.secret,
            label,
            self.context.as_ref(),
            size,
        )
    }
}

/// The KEM's ExtractAndExpand.
fn shared_secret(dh: &[u8], enc: &[u8; 32], public: &[u8; 32]) -> Option<Secret> {
    let prk = labeled_extract(KEM_SUITE, &[], b"eae_prk", dh)?;
    let mut context = [0; 64];
    let (front, back) = context.split_at_mut(32);
    front.copy_from_slice(enc);
    back.copy_from_slice(public);
    labeled_expand(KEM_SUITE, &prk, b"shared_secret", &context, 32)
}

fn labeled_extract(suite: &[u8], salt: &[u8], label: &[u8], ikm: &[u8]) -> Option<Secret> {
    mac(salt, &[b"HPKE-v1", suite, label, ikm])
}

/// The first `size` bytes are the output; the rest must not be used.
fn labeled_expand(
    suite: &[u8],
    prk: &Secret,
    label: &[u8],
    info: &[u8],
    size: u8,
) -> Option<Secret> {
    expand(prk, &[&[0, size], b"HPKE-v1", suite, label, info])
}

/// HKDF-Expand of at most one block.
fn expand(prk: &Secret, info: &[&[u8]]) -> Option<Secret> {
    let mut parts: [&[u8]; 6] = [&[]; 6];
    let (last, before) = parts.split_last_mut()?;
    before.get_mut(..info.len())?.copy_from_slice(info);
    *last = &[1];
    mac(prk.as_ref(), &parts)
}

/// HMAC-SHA256 of all parts together; with a salt for a key this is HKDF-Extract.
fn mac(key: &[u8], parts: &[&[u8]]) -> Option<Secret> {
    let mut message = Zeroizing::new([0u8; MAC_SIZE]);
    let mut size = 0usize;
    for part in parts {
        let end = size.checked_add(part.len())?;
        message.get_mut(size..end)?.copy_from_slice(part);
        size = end;
    }
    let mut output = Zeroizing::new([0; 32]);
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign_to_buffer(&key, message.get(..size)?, output.as_mut()).ok()?;
    Some(output)
}

fn cipher(key: &Secret) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key.as_ref())
        .ok()
        .map(LessSafeKey::new)
}

#[cfg(test)]
pub mod tests;
