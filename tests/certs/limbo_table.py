"""What each of the 194 cases of the x509-limbo corpus must do with us, and why.

Every case is in exactly one table. ``REFUSED``: the corpus expects a failure, and so do we, at that stage and for that
reason. ``ACCEPTED``: the corpus expects success, and our chain stage agrees. ``STRICTER``: the corpus expects success,
we refuse, deliberately. ``NOT_APPLICABLE``: the case asks something that has no meaning for SPIFFE, or that we do not
do; such a case too never yields an identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Stage(Enum):
    """Where a case is refused."""

    BUNDLE = auto()  # the root is not taken into a trust bundle, so there is no context to shake hands with
    CHAIN = auto()  # certs.verify.verify_chain
    LEAF = auto()  # a rule of certs.svid


class Tls(Enum):
    """What our end's OpenSSL says in the handshake, before our own verification of what it received."""

    REFUSES = auto()
    PASSES = auto()  # it may refuse, newer versions do: the second opinion must hold either way
    NO_KEY = auto()  # the corpus has no private key for the leaf, so nobody can present it
    NOT_LOADABLE = auto()  # the peer's OpenSSL does not read the certificate, so it cannot be sent with it
    NOT_OFFERED = (
        auto()
    )  # the peer's OpenSSL gives up: TLS 1.3 has no signature scheme for the key, or it cannot send it


@dataclass(frozen=True, slots=True)
class Refused:
    """:param reason: part of the message that refuses it"""

    stage: Stage
    reason: str
    tls: Tls = Tls.REFUSES


@dataclass(frozen=True, slots=True)
class Stricter:
    """:param why: why we refuse what the corpus accepts"""

    stage: Stage
    reason: str
    why: str
    tls: Tls = Tls.REFUSES


HOST_SYNTAX = "is not a plain host name"
NO_ISSUER = "no root and no intermediate is its issuer"
NOT_PERMITTED = "is not within what is permitted"
EXCLUDED = "is excluded"
UNREADABLE = "not a readable X.509 certificate"
SERIAL = "its serial number is not a positive number of at most 20 octets"
UNKNOWN_CRITICAL = "extension 1.3.6.1.4.1.55738.666.1 is critical and not processed here"
PATH_LENGTH = "its path length is 0"
NC_ADDRESS = "those on names of the form IPAddress are not evaluated"
NC_DIRECTORY = "those on names of the form DirectoryName are not evaluated"
NC_MAIL = "those on names of the form RFC822Name are not evaluated"
NC_OTHER = "those on names of the form OtherName are not evaluated"
TOO_MANY = "chain: 100 intermediates were sent, at most 8 are read"
TOO_LONG = "the path would have more than"
CA_LEAF = "it has basic constraint CA"
CERT_SIGN = "key usage keyCertSign without basic constraint CA"

CA_LEAF_WHY = "a signing certificate identifies nobody (X509-SVID section 3.2)"
NC_WHY = "constraints on names that no SVID has are not evaluated: where they meet such a name, the path is refused"
WILDCARD_WHY = "no certificate of a SPIFFE path has a wildcard"

REVOCATION = "there are no revocation lists: SVIDs live an hour and are not renewed for who is cut off"
HOST_NAME = "it differs from a good case by the host name that was asked for alone; our identity is the SPIFFE ID"
CRITICAL_SAN = "X509-SVID lets the alternative name be critical, and RFC 5280 section 4.2.1.6 says only SHOULD NOT"
CRITICAL_EKU = "X509-SVID section 4.4 lets the extended key usage be critical"

# In rfc5280::intermediate-ca-missing-basic-constraints and rfc5280::ica-ku-keycertsign the corpus does not hand out the
# intermediate in question, so the missing issuer is the case's own reason.
REFUSED: dict[str, Refused] = {
    "cve::cve-2025-61727": Refused(Stage.CHAIN, HOST_SYNTAX, tls=Tls.PASSES),
    "cve::cve-2025-61727-nc-permits-variant": Refused(Stage.CHAIN, HOST_SYNTAX),
    "invalid::invalid-issuer-key": Refused(Stage.CHAIN, "its key or signature is of a kind that is not taken"),
    "pathlen::intermediate-violates-pathlen-0": Refused(Stage.CHAIN, PATH_LENGTH),
    "pathlen::intermediate-pathlen-too-long": Refused(Stage.CHAIN, PATH_LENGTH),
    "pathlen::max-chain-depth-0-exhausted": Refused(Stage.CHAIN, TOO_LONG, tls=Tls.PASSES),
    "pathlen::max-chain-depth-1-exhausted": Refused(Stage.CHAIN, TOO_LONG, tls=Tls.PASSES),
    "pathological::intermediate-cycle-distinct-cas": Refused(Stage.CHAIN, NO_ISSUER),
    "pathological::intermediate-cycle-distinct-cas-max-depth": Refused(Stage.CHAIN, NO_ISSUER),
    "pathological::intermediate-cycle-same-logical-ca": Refused(
        Stage.CHAIN, "its key usage does not permit signing certificates"
    ),
    "pathological::nc-dos-1": Refused(Stage.BUNDLE, "bytes long, at most 16384 are read"),
    "pathological::nc-dos-2": Refused(Stage.BUNDLE, "bytes long, at most 16384 are read"),
    "pathological::nc-dos-3": Refused(Stage.BUNDLE, "bytes long, at most 16384 are read"),
    "pathological::pathological-chain-distinct-subject-distinct-key": Refused(Stage.CHAIN, TOO_MANY),
    "pathological::pathological-chain-same-subject-distinct-key": Refused(Stage.CHAIN, TOO_MANY),
    "pathological::pathological-chain-distinct-subject-same-key": Refused(Stage.CHAIN, TOO_MANY),
    "pathological::pathological-chain-same-subject-same-key": Refused(Stage.CHAIN, TOO_MANY),
    "rfc5280::aki::critical-aki": Refused(Stage.BUNDLE, "extension 2.5.29.35 is critical and not processed here"),
    "rfc5280::aki::leaf-missing-aki": Refused(
        Stage.CHAIN, "the certificate below the root has no authority key identifier"
    ),
    "rfc5280::aki::intermediate-missing-aki": Refused(
        Stage.CHAIN, "the certificate below the root has no authority key identifier"
    ),
    "rfc5280::aki::cross-signed-root-missing-aki": Refused(
        Stage.BUNDLE, "it is not signed with its own key, so it is no root"
    ),
    "rfc5280::eku::ee-wrong-eku": Refused(Stage.LEAF, "lacks serverAuth or clientAuth"),
    "rfc5280::eku::ee-eku-empty": Refused(Stage.CHAIN, UNREADABLE),
    "rfc5280::nc::permitted-dns-mismatch": Refused(Stage.CHAIN, NOT_PERMITTED),
    "rfc5280::nc::excluded-dns-match": Refused(Stage.CHAIN, EXCLUDED),
    "rfc5280::nc::permitted-dns-match-noncritical": Refused(Stage.BUNDLE, "its name constraints are not critical"),
    "rfc5280::nc::excluded-dns-match-second": Refused(Stage.CHAIN, EXCLUDED),
    "rfc5280::nc::permitted-ip-mismatch": Refused(Stage.CHAIN, NC_ADDRESS),
    "rfc5280::nc::excluded-ipv4-match": Refused(Stage.CHAIN, NC_ADDRESS),
    "rfc5280::nc::excluded-ipv6-match": Refused(Stage.CHAIN, NC_ADDRESS),
    "rfc5280::nc::permitted-dn-mismatch": Refused(Stage.CHAIN, NC_DIRECTORY),
    "rfc5280::nc::excluded-dn-match": Refused(Stage.CHAIN, NC_DIRECTORY),
    "rfc5280::nc::permitted-dn-match-subject-san-mismatch": Refused(Stage.CHAIN, NC_DIRECTORY),
    "rfc5280::nc::excluded-dn-match-sub-mismatch": Refused(Stage.CHAIN, NC_DIRECTORY),
    "rfc5280::nc::excluded-self-issued-leaf": Refused(Stage.CHAIN, NOT_PERMITTED),
    "rfc5280::nc::excluded-match-permitted-and-excluded": Refused(Stage.CHAIN, EXCLUDED),
    "rfc5280::nc::invalid-dnsname-wildcard": Refused(Stage.BUNDLE, UNREADABLE),
    "rfc5280::nc::invalid-dnsname-leading-period": Refused(
        Stage.BUNDLE, "it constrains DNS name '.example.com', no plain host name"
    ),
    "rfc5280::nc::invalid-ipv4-address": Refused(Stage.BUNDLE, UNREADABLE),
    "rfc5280::nc::invalid-ipv6-address": Refused(Stage.BUNDLE, UNREADABLE),
    "rfc5280::nc::invalid-email-address": Refused(Stage.CHAIN, NC_MAIL),
    "rfc5280::nc::not-allowed-in-ee-noncritical": Refused(
        Stage.CHAIN, "name constraints without basic constraint CA", tls=Tls.PASSES
    ),
    "rfc5280::nc::not-allowed-in-ee-critical": Refused(
        Stage.CHAIN, "name constraints without basic constraint CA", tls=Tls.PASSES
    ),
    "rfc5280::nc::intermediate-with-san-rejected-by-intermediate-nc": Refused(Stage.CHAIN, NOT_PERMITTED),
    "rfc5280::nc::intermediate-with-san-rejected-by-root-nc": Refused(Stage.CHAIN, NOT_PERMITTED),
    "rfc5280::nc::restrictive-permits-in-intermediates-narrows": Refused(Stage.CHAIN, NOT_PERMITTED),
    "rfc5280::nc::restrictive-permits-in-intermediates-widens": Refused(Stage.CHAIN, NOT_PERMITTED),
    "rfc5280::nc::nc-permits-invalid-dns-san": Refused(Stage.CHAIN, HOST_SYNTAX, tls=Tls.PASSES),
    "rfc5280::nc::nc-permits-invalid-ip-san": Refused(Stage.CHAIN, NC_ADDRESS),
    "rfc5280::nc::nc-permits-invalid-email-san": Refused(Stage.CHAIN, NC_MAIL, tls=Tls.PASSES),
    "rfc5280::nc::nc-permits-email-literal-asterisk-rejects-user": Refused(Stage.CHAIN, NC_MAIL),
    "rfc5280::nc::nc-permits-email-literal-asterisk-rejects-subdomain": Refused(Stage.CHAIN, NC_MAIL),
    "rfc5280::nc::nc-permits-email-literal-double-asterisk-rejects-single": Refused(Stage.CHAIN, NC_MAIL),
    "rfc5280::nc::nc-forbids-othername": Refused(Stage.CHAIN, NC_OTHER),
    "rfc5280::nc::nc-forbids-dnsname-wildcard-san": Refused(Stage.CHAIN, HOST_SYNTAX, tls=Tls.PASSES),
    "rfc5280::pc::ica-noncritical-pc": Refused(
        Stage.CHAIN, "extension 2.5.29.36 binds policies, which are not evaluated", tls=Tls.PASSES
    ),
    "rfc5280::san::malformed": Refused(Stage.CHAIN, UNREADABLE, tls=Tls.NOT_LOADABLE),
    "rfc5280::san::noncritical-with-empty-subject": Refused(
        Stage.CHAIN, "it has neither a subject nor a critical subject alternative name"
    ),
    "rfc5280::san::underscore-dns": Refused(Stage.CHAIN, HOST_SYNTAX, tls=Tls.PASSES),
    "rfc5280::san::ip-in-dns": Refused(Stage.CHAIN, HOST_SYNTAX, tls=Tls.PASSES),
    "rfc5280::serial::too-long": Refused(Stage.CHAIN, SERIAL, tls=Tls.PASSES),
    "rfc5280::serial::zero": Refused(Stage.CHAIN, SERIAL, tls=Tls.PASSES),
    "rfc5280::serial::negative": Refused(Stage.BUNDLE, SERIAL),
    "rfc5280::ski::critical-ski": Refused(Stage.BUNDLE, "extension 2.5.29.14 is critical and not processed here"),
    "rfc5280::ski::root-missing-ski": Refused(Stage.BUNDLE, "it signs certificates and has no subject key identifier"),
    "rfc5280::ski::intermediate-missing-ski": Refused(
        Stage.CHAIN, "it signs certificates and has no subject key identifier"
    ),
    "rfc5280::validity::expired-root": Refused(Stage.CHAIN, "expired at 2020-01-01 00:00:00 UTC"),
    "rfc5280::validity::expired-intermediate": Refused(Stage.CHAIN, "expired at 2020-01-01 00:00:00 UTC"),
    "rfc5280::validity::expired-leaf": Refused(Stage.CHAIN, "expired at 2021-01-01 00:00:00 UTC"),
    "rfc5280::validity::notbefore-fractional": Refused(Stage.CHAIN, "not valid before 2024-03-01 00:00:01 UTC"),
    "rfc5280::validity::expired-1-second": Refused(Stage.CHAIN, "expired at 2024-04-01 00:00:00 UTC"),
    "rfc5280::validity::expired-5-seconds": Refused(Stage.CHAIN, "expired at 2024-04-01 00:00:00 UTC"),
    "rfc5280::validity::not-yet-valid-1-second": Refused(Stage.CHAIN, "not valid before 2024-03-01 00:00:01 UTC"),
    "rfc5280::validity::not-yet-valid-5-seconds": Refused(Stage.CHAIN, "not valid before 2024-03-01 00:00:05 UTC"),
    "rfc5280::ee-empty-issuer": Refused(Stage.CHAIN, "it names no issuer"),
    "rfc5280::ca-empty-subject": Refused(
        Stage.BUNDLE, "it has neither a subject nor a critical subject alternative name"
    ),
    "rfc5280::unknown-critical-extension-ee": Refused(Stage.CHAIN, UNKNOWN_CRITICAL),
    "rfc5280::unknown-critical-extension-root": Refused(Stage.BUNDLE, UNKNOWN_CRITICAL),
    "rfc5280::unknown-critical-extension-intermediate": Refused(Stage.CHAIN, UNKNOWN_CRITICAL),
    "rfc5280::chain-untrusted-root": Refused(Stage.CHAIN, NO_ISSUER),
    "rfc5280::intermediate-ca-without-ca-bit": Refused(Stage.CHAIN, CERT_SIGN),
    "rfc5280::intermediate-ca-missing-basic-constraints": Refused(Stage.CHAIN, NO_ISSUER),
    "rfc5280::root-missing-basic-constraints": Refused(Stage.BUNDLE, CERT_SIGN),
    "rfc5280::root-non-critical-basic-constraints": Refused(Stage.BUNDLE, "its basic constraints are not critical"),
    "rfc5280::root-inconsistent-ca-extensions": Refused(
        Stage.BUNDLE, "its key usage does not permit signing certificates"
    ),
    "rfc5280::ica-ku-keycertsign": Refused(Stage.CHAIN, NO_ISSUER),
    "rfc5280::leaf-ku-keycertsign": Refused(Stage.CHAIN, CERT_SIGN),
    "rfc5280::ee-critical-aia-invalid": Refused(
        Stage.CHAIN, "extension 1.3.6.1.5.5.7.1.1 is critical and not processed here"
    ),
    "rfc5280::duplicate-extensions": Refused(Stage.CHAIN, "extension 2.5.29.17 is there twice", tls=Tls.NOT_LOADABLE),
    "rfc5280::mismatching-signature-algorithm": Refused(Stage.CHAIN, "cannot be checked", tls=Tls.NO_KEY),
    "webpki::aki::root-with-aki-missing-keyidentifier": Refused(
        Stage.BUNDLE, "its authority key identifier is not a key identifier alone"
    ),
    "webpki::aki::root-with-aki-authoritycertissuer": Refused(Stage.BUNDLE, UNREADABLE),
    "webpki::aki::root-with-aki-authoritycertserialnumber": Refused(Stage.BUNDLE, UNREADABLE),
    "webpki::aki::root-with-aki-all-fields": Refused(
        Stage.BUNDLE, "its authority key identifier is not a key identifier alone"
    ),
    "webpki::aki::root-with-aki-ski-mismatch": Refused(
        Stage.BUNDLE, "its authority key identifier is not its own subject key identifier"
    ),
    "webpki::eku::ee-anyeku": Refused(Stage.LEAF, "lacks serverAuth or clientAuth", tls=Tls.PASSES),
    "webpki::eku::ee-without-eku": Refused(Stage.LEAF, "it has no extended key usage", tls=Tls.PASSES),
    "webpki::eku::root-has-eku": Refused(
        Stage.BUNDLE, "its extended key usage does not permit servers and clients both"
    ),
    "webpki::nc::intermediate-permitted-excluded-subtrees-both-null": Refused(Stage.CHAIN, UNREADABLE, tls=Tls.PASSES),
    "webpki::nc::intermediate-permitted-excluded-subtrees-both-empty-sequences": Refused(
        Stage.CHAIN, UNREADABLE, tls=Tls.PASSES
    ),
    "webpki::san::public-suffix-wildcard-san": Refused(Stage.CHAIN, HOST_SYNTAX, tls=Tls.PASSES),
    "webpki::san::public-suffix-multi-label-wildcard-san": Refused(Stage.CHAIN, HOST_SYNTAX, tls=Tls.PASSES),
    "webpki::san::public-suffix-private-namespace-wildcard-san": Refused(Stage.CHAIN, HOST_SYNTAX, tls=Tls.PASSES),
    "webpki::san::wildcard-embedded-leftmost-san": Refused(Stage.CHAIN, HOST_SYNTAX, tls=Tls.PASSES),
    "webpki::san::wildcard-not-in-leftmost-san": Refused(Stage.CHAIN, HOST_SYNTAX, tls=Tls.PASSES),
    "webpki::san::wildcard-match-across-labels-san": Refused(Stage.CHAIN, HOST_SYNTAX, tls=Tls.PASSES),
    "webpki::san::wildcard-embedded-ulabel-san": Refused(Stage.CHAIN, HOST_SYNTAX, tls=Tls.PASSES),
    "webpki::san::unicode-emoji-san": Refused(Stage.CHAIN, HOST_SYNTAX, tls=Tls.PASSES),
    "webpki::san::no-san": Refused(Stage.LEAF, "it has no subject alternative name", tls=Tls.PASSES),
    "webpki::san::san-wildcard-only": Refused(Stage.CHAIN, HOST_SYNTAX, tls=Tls.PASSES),
    "webpki::san::san-wildcard-only-tld": Refused(Stage.CHAIN, HOST_SYNTAX, tls=Tls.PASSES),
    "webpki::explicit-curve": Refused(
        Stage.BUNDLE, "its key is not written in the usual form, a named curve and the whole point"
    ),
    "webpki::cryptographydotio-chain-missing-intermediate": Refused(Stage.CHAIN, NO_ISSUER, tls=Tls.NO_KEY),
    "webpki::malformed-aia": Refused(Stage.CHAIN, UNREADABLE, tls=Tls.PASSES),
    "webpki::forbidden-p192-root": Refused(Stage.BUNDLE, "its key is on curve secp192r1"),
    "webpki::forbidden-p192-leaf": Refused(Stage.CHAIN, "its key is on curve secp192r1", tls=Tls.NOT_OFFERED),
    "webpki::forbidden-dsa-root": Refused(Stage.BUNDLE, "its key is neither ECDSA nor RSA"),
    "webpki::forbidden-dsa-leaf": Refused(Stage.CHAIN, "its key is neither ECDSA nor RSA", tls=Tls.NOT_OFFERED),
    "webpki::forbidden-weak-rsa-key-in-root": Refused(Stage.BUNDLE, "its RSA key has 1024 bits"),
    "webpki::forbidden-weak-rsa-in-leaf": Refused(Stage.CHAIN, "its RSA key has 1024 bits"),
    "webpki::forbidden-rsa-not-divisible-by-8-in-root": Refused(Stage.BUNDLE, "its RSA key has 2052 bits"),
    "webpki::forbidden-rsa-key-not-divisible-by-8-in-leaf": Refused(
        Stage.CHAIN, "its RSA key has 2052 bits", tls=Tls.PASSES
    ),
    "webpki::v1-cert": Refused(Stage.CHAIN, "X.509 version 1", tls=Tls.PASSES),
    "webpki::ee-basicconstraints-ca": Refused(Stage.CHAIN, CA_LEAF, tls=Tls.PASSES),
    "webpki::ca-as-leaf": Refused(Stage.CHAIN, CA_LEAF),
}

# Where OpenSSL refuses: it does not look for another path after name constraints refused the first, and it lets a
# certificate end one second sooner (X509_cmp_time takes an equal time for a past one). Refusing more is safe.
ACCEPTED: dict[str, Tls] = {
    "pathlen::ee-with-intermediate-pathlen-0": Tls.PASSES,
    "pathlen::ee-with-intermediate-pathlen-1": Tls.PASSES,
    "pathlen::ee-with-intermediate-pathlen-2": Tls.PASSES,
    "pathlen::intermediate-pathlen-may-increase": Tls.PASSES,
    "pathlen::self-issued-certs-pathlen": Tls.PASSES,
    "pathlen::max-chain-depth-0": Tls.PASSES,
    "pathlen::max-chain-depth-1": Tls.PASSES,
    "pathological::multiple-chains-expired-intermediate": Tls.PASSES,
    "rfc5280::aki::self-signed-root-missing-aki": Tls.PASSES,
    "rfc5280::eku::ee-without-eku": Tls.PASSES,
    "rfc5280::nc::permitted-dns-match": Tls.PASSES,
    "rfc5280::nc::permitted-dns-match-more": Tls.PASSES,
    "rfc5280::nc::permitted-different-constraint-type": Tls.PASSES,
    "rfc5280::nc::excluded-different-constraint-type": Tls.PASSES,
    "rfc5280::nc::nc-forbids-alternate-chain-ica": Tls.REFUSES,
    "rfc5280::nc::nc-forbids-same-chain-ica": Tls.REFUSES,
    "rfc5280::nc::nc-forbids-othername-noop": Tls.PASSES,
    "rfc5280::validity::notbefore-exact": Tls.PASSES,
    "rfc5280::validity::notafter-exact": Tls.REFUSES,
    "rfc5280::validity::notafter-fractional": Tls.REFUSES,
    "rfc5280::ee-aia": Tls.PASSES,
    "rfc5280::no-keyusage": Tls.PASSES,
    "rfc5280::no-basicconstraints": Tls.PASSES,
    "webpki::san::exact-dns-san": Tls.PASSES,
    "webpki::san::exact-localhost-ip-san": Tls.PASSES,
    "webpki::cryptographydotio-chain": Tls.NO_KEY,
}

STRICTER: dict[str, Stricter] = {
    # our roots sign themselves: OpenSSL takes no other as the end of a path
    "cve::cve-2024-0567": Stricter(Stage.BUNDLE, "it is not signed with its own key", "a cross-signed root is none"),
    "rfc5280::root-and-intermediate-swapped": Stricter(
        Stage.BUNDLE, "is not its own subject key identifier", "a cross-signed root is none"
    ),
    "pathlen::validation-ignores-pathlen-in-leaf": Stricter(Stage.CHAIN, CA_LEAF, CA_LEAF_WHY),
    "rfc5280::ca-as-leaf": Stricter(Stage.CHAIN, CA_LEAF, CA_LEAF_WHY),
    "pathlen::max-chain-depth-1-self-issued": Stricter(
        Stage.CHAIN, TOO_LONG, "our bound on a path is on all work done for a stranger, self-issued or not", Tls.PASSES
    ),
    "rfc5280::nc::permitted-ipv4-match": Stricter(Stage.CHAIN, NC_ADDRESS, NC_WHY, Tls.PASSES),
    "rfc5280::nc::permitted-ipv6-match": Stricter(Stage.CHAIN, NC_ADDRESS, NC_WHY, Tls.PASSES),
    "rfc5280::nc::permitted-dn-match": Stricter(Stage.CHAIN, NC_DIRECTORY, NC_WHY, Tls.PASSES),
    "rfc5280::nc::permitted-self-issued": Stricter(
        Stage.CHAIN, NOT_PERMITTED, "self-issued intermediates are not exempt from name constraints", Tls.PASSES
    ),
    "rfc5280::nc::nc-permits-email-exact": Stricter(Stage.CHAIN, NC_MAIL, NC_WHY, Tls.PASSES),
    "rfc5280::nc::nc-permits-email-domain": Stricter(Stage.CHAIN, NC_MAIL, NC_WHY, Tls.PASSES),
    "rfc5280::nc::nc-permits-email-literal-asterisk-exact-match": Stricter(Stage.CHAIN, NC_MAIL, NC_WHY, Tls.PASSES),
    "rfc5280::nc::nc-permits-email-literal-double-asterisk": Stricter(Stage.CHAIN, NC_MAIL, NC_WHY, Tls.PASSES),
    "rfc5280::nc::nc-permits-email-literal-mid-asterisk": Stricter(Stage.CHAIN, NC_MAIL, NC_WHY, Tls.PASSES),
    "rfc5280::unknown-critical-extension-unrelated-root": Stricter(
        Stage.BUNDLE, UNKNOWN_CRITICAL, "a bundle with one bad root is refused whole"
    ),
    "rfc5280::unknown-critical-extension-unrelated-intermediate": Stricter(
        Stage.CHAIN, UNKNOWN_CRITICAL, "a message with one bad certificate is refused whole", Tls.PASSES
    ),
    "webpki::nc::permitted-dns-match-noncritical": Stricter(
        Stage.BUNDLE, "its name constraints are not critical", "RFC 5280 section 4.2.1.10: they must be"
    ),
    "webpki::nc::nc-permits-dns-san-pattern": Stricter(Stage.CHAIN, HOST_SYNTAX, WILDCARD_WHY, Tls.PASSES),
    "webpki::san::leftmost-wildcard-san": Stricter(Stage.CHAIN, HOST_SYNTAX, WILDCARD_WHY, Tls.PASSES),
}

NOT_APPLICABLE: dict[str, str] = {
    "crl::revoked-certificate-with-crl": REVOCATION,
    "crl::crlnumber-missing": REVOCATION,
    "crl::certificate-not-on-crl": REVOCATION,
    "crl::certificate-serial-on-crl-different-issuer": REVOCATION,
    "crl::crlnumber-critical": REVOCATION,
    "crl::issuer-missing-crlsign": REVOCATION,
    "crl::issuer-no-keyusage-extension": REVOCATION,
    "crl::issuer-valid-crlsign-and-keycertsign": REVOCATION,
    "webpki::cn::ipv4-hex-mismatch": HOST_NAME,
    "webpki::cn::ipv4-leading-zeros-mismatch": HOST_NAME,
    "webpki::cn::ipv6-uppercase-mismatch": HOST_NAME,
    "webpki::cn::ipv6-uncompressed-mismatch": HOST_NAME,
    "webpki::cn::ipv6-non-rfc5952-mismatch": HOST_NAME,
    "webpki::cn::punycode-not-in-san": HOST_NAME,
    "webpki::cn::utf8-vs-punycode-mismatch": HOST_NAME,
    "webpki::cn::not-in-san": HOST_NAME,
    "webpki::cn::case-mismatch": HOST_NAME,
    "webpki::eku::ee-critical-eku": CRITICAL_EKU,
    "webpki::san::mismatch-domain-san": HOST_NAME,
    "webpki::san::mismatch-subdomain-san": HOST_NAME,
    "webpki::san::mismatch-subdomain-apex-san": HOST_NAME,
    "webpki::san::mismatch-apex-subdomain-san": HOST_NAME,
    "webpki::san::san-critical-with-nonempty-subject": CRITICAL_SAN,
    "rfc5280::ca-as-leaf-wrong-san": HOST_NAME,
}
