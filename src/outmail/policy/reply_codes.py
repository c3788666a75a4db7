"""What SMTP's reply codes mean, in words of our own, with what to do.

Data: the basic codes of RFC 5321 §4.2.3 and of its extensions (RFC 4954 for AUTH, RFC 3207 for STARTTLS, RFC
1985 for ETRN, RFC 2645 for ATRN, RFC 5248, RFC 7504), and those that IANA's registry names beside enhanced
codes. The enhanced codes are those of the registry "SMTP Enhanced Status Codes"
(https://www.iana.org/assignments/smtp-enhanced-status-codes, updated on 2024-12-06, compared on 2026-11-28),
without their first digit, which only says how final the answer is. These are 81, by RFC 3463, 3886, 4468,
4954, 5248, 6531, 6710, 7293, 7372, 7504, 7505, 8617 and 8689. RFC 4865, 6857, 8616 and 9422 add none.
Does not: know what providers make of them (`reply_texts`), or choose (`replies`).
"""

from __future__ import annotations

from typing import Final

#: code → (what it means, what to do).
BASIC: Final[dict[int, tuple[str, str]]] = {
    211: ("The server tells its status or some help.", ""),
    214: ("The server answers a request for help.", ""),
    220: ("The server is ready to begin.", ""),
    221: ("The server closes the connection, as asked.", ""),
    235: ("User name and password were accepted (RFC 4954).", ""),
    250: ("The server did what was asked. After the content: it has taken the message.", ""),
    251: ("The recipient is not of this server, which will forward the message.", ""),
    252: ("The server cannot tell whether the address exists, and will take mail for it.", ""),
    253: ("The server begins to send what waits for the client (RFC 1985).", ""),
    334: ("The server waits for the next part of the login (RFC 4954).", ""),
    354: ("The server waits for the content of the message.", ""),
    421: (
        "The server closes the connection: it shuts down, is too busy, or has had enough of this client.",
        "Nothing, the queue tries again. If it goes on: fewer connections (concurrency) or a lower rate.",
    ),
    430: (
        "The server does not do what the command asks for (IANA's registry, beside X.5.1).",
        "Nothing, the queue tries again. If it goes on, ask the server's operator.",
    ),
    432: (
        "The account must be changed to another way of login first (RFC 4954).",
        "Log in once by the way the server asks for, or ask its operator.",
    ),
    450: (
        "The mailbox cannot take mail at the moment: it is in use, or the server makes strangers wait "
        "(greylisting).",
        "Nothing, the queue tries again.",
    ),
    451: (
        "Something went wrong on the server, or it makes strangers wait (greylisting).",
        "Nothing, the queue tries again. If it goes on, ask the server's operator.",
    ),
    452: (
        "The server has no room, or the message has more recipients than it takes at a time.",
        "Nothing, the queue tries again, and sends to the other recipients in another transaction.",
    ),
    453: (
        "The server takes no mail at the moment (IANA's registry, beside X.3.2). To ATRN: no mail "
        "waits (RFC 2645).",
        "Nothing, the queue tries again.",
    ),
    454: (
        "Login or encryption is not to be had for the moment (RFC 4954, RFC 3207).",
        "Nothing, the queue tries again. If it goes on: too many logins, or the server's certificate is "
        "missing.",
    ),
    455: ("The server cannot do what a parameter asks for.", "Nothing, the queue tries again."),
    458: (
        "The server cannot send now what waits for this client (RFC 1985).",
        "Nothing, the queue tries again.",
    ),
    459: (
        "The server does not send what waits for this client on request (RFC 1985).",
        "Ask the server's operator.",
    ),
    500: (
        "The server does not understand the command, or the line was too long.",
        "Is there a mail server on this port at all, and the right kind of encryption?",
    ),
    501: (
        "The server does not understand what stands behind the command, often an address.",
        "Look at the addresses of sender and recipient, and at the name that this machine gives itself.",
    ),
    502: ("The server does not have this command.", "Is there a mail server on this port at all?"),
    503: (
        "The command came at the wrong time; often: a login is needed first.",
        "Give the relay's URL a user name and a password.",
    ),
    504: (
        "The server does not know this parameter, or this way of login.",
        "Ask its operator which ways of login it has.",
    ),
    521: ("This machine takes no mail at all (RFC 7504).", "Use another relay or address."),
    523: ("The message is not encrypted as the server wants it.", "Use smtps://, or smtp:// with STARTTLS."),
    524: (
        "The account must be changed to another way of login first.",
        "Ask the server's operator for a new password.",
    ),
    525: ("The account is disabled (RFC 5248).", "Ask the server's operator to enable it."),
    530: (
        "The server wants a login, or encryption, before it takes mail (RFC 4954, RFC 3207).",
        "Give the relay's URL a user name and a password; use smtps:// or STARTTLS.",
    ),
    533: (
        "The server does not allow this (IANA's registry, beside X.7.1).",
        "The server's words say more; often a login is missing.",
    ),
    534: (
        "This way of login is too weak for the server, or for this account (RFC 4954).",
        "Many providers want a password for applications here, not the one of the account.",
    ),
    535: (
        "User name or password is wrong (RFC 4954).",
        "Look at both. Many providers want a password for applications, not the one of the account.",
    ),
    538: (
        "This way of login needs an encrypted connection (RFC 4954).",
        "Use smtps://, or smtp:// with STARTTLS.",
    ),
    550: (
        "The server does not deliver to this recipient: there is no such mailbox, or its rules forbid it.",
        "Look at the address. If it is right, the server's words say which rule it was.",
    ),
    551: ("The recipient is at another server.", "Use the address that the server names."),
    552: (
        "The message is too large, or the mailbox has no room for it.",
        "Send a smaller message, or ask the recipient to make room.",
    ),
    553: (
        "The server does not allow this address, of the sender or of a recipient.",
        "Often the sender is not one that this login may use: look at the address in `from`.",
    ),
    554: (
        "The server does not take the message, or does not serve this client at all; often it takes it for "
        "spam.",
        "The server's words say why. Look at the sender's domain (SPF, DKIM) and at lists of blocked "
        "addresses.",
    ),
    555: (
        "The server does not know a parameter of the sender's or a recipient's address.",
        "Ask for less: no notifications (DSN) with this server.",
    ),
    556: ("The recipient's domain takes no mail (RFC 7504).", "Look at the address."),
}

#: First digit of an enhanced code → how final it is.
CLASSES: Final[dict[str, str]] = {
    "2": "It worked.",
    "4": "It failed for now; another try may succeed.",
    "5": "It failed for good; the same message will not be taken by another try.",
}

#: Second number → what the code is about.
SUBJECTS: Final[dict[str, str]] = {
    "0": "something that the code does not tell",
    "1": "an address",
    "2": "the mailbox",
    "3": "the mail server",
    "4": "the network, or the way of the message",
    "5": "the commands of the dialogue",
    "6": "the content of the message",
    "7": "security, or a rule of the server",
}

_OPERATOR = "Ask the operator of the server."
_DOMAIN = "Mend the records of the sender's domain: SPF, DKIM and DMARC must agree with the relay in use."

#: Subject and detail → (what it means, what to do). The codes of RFC 3463 carry no mark of their own.
ENHANCED: Final[dict[str, tuple[str, str]]] = {
    "0.0": ("The server says no more than that it worked, or did not.", ""),
    "1.0": ("Something is wrong with an address.", "Look at the addresses of sender and recipient."),
    "1.1": ("There is no such mailbox.", "Look at the part of the address before the @."),
    "1.2": ("The domain does not exist or takes no mail.", "Look at the part of the address behind the @."),
    "1.3": ("The address is not written as one.", "Look at the address."),
    "1.4": ("The address means more than one mailbox.", "Use the full address."),
    "1.5": ("The address is good.", ""),
    "1.6": ("The mailbox has moved, and nothing is forwarded.", "Ask the recipient for the new address."),
    "1.7": ("The sender's address is not written as one.", "Look at `from`, or at -f."),
    "1.8": (
        "The sender's domain does not exist or takes no mail.",
        "Use a sender at a domain that exists and has mail.",
    ),
    "1.9": ("The message went on to a server that knows no notifications (RFC 3886).", ""),
    "1.10": ("The domain says of itself that it takes no mail (RFC 7505).", "Look at the address."),
    "2.0": ("Something is wrong with the mailbox.", "Ask the recipient, by another way."),
    "2.1": ("The mailbox is disabled.", "Ask the recipient, by another way."),
    "2.2": ("The mailbox is full.", "Ask the recipient to make room."),
    "2.3": ("The message is larger than this mailbox takes.", "Send a smaller one."),
    "2.4": ("A mailing list could not be expanded.", _OPERATOR),
    "3.0": ("Something is wrong with the mail server.", _OPERATOR),
    "3.1": ("The mail server's disk is full.", _OPERATOR),
    "3.2": ("The mail server takes nothing at the moment.", "Nothing, the queue tries again."),
    "3.3": ("The mail server lacks what the message needs.", "Use a relay that has it."),
    "3.4": ("The message is larger than the mail server takes.", "Send a smaller one."),
    "3.5": ("The mail server is set up wrongly.", _OPERATOR),
    "3.6": ("The message was taken with another priority (RFC 6710).", ""),
    "4.0": ("Something is wrong with the network.", "The queue tries again while the code begins with 4."),
    "4.1": (
        "The next server does not answer.",
        "The queue tries again. If it goes on: is the host's name right, and does it run?",
    ),
    "4.2": ("The connection broke off.", "The queue tries again."),
    "4.3": ("A directory that the server asked did not answer.", _OPERATOR),
    "4.4": (
        "The server finds no way to the domain.",
        "Look at the domain's MX records, and at the part of the address behind the @.",
    ),
    "4.5": ("The server has too much mail at the moment.", "The queue tries again."),
    "4.6": ("The message goes round in a circle.", "Look for servers that forward to each other."),
    "4.7": ("The message could not be delivered for too long.", "Find out why, then send it again."),
    "5.0": ("Something went wrong in the dialogue.", _OPERATOR),
    "5.1": ("The command is not possible here, or not now.", "Is a login needed first?"),
    "5.2": ("The server does not understand the command.", "Is there a mail server on this port?"),
    "5.3": ("The message has more recipients than the server takes at once.", "The queue sends in parts."),
    "5.4": ("The server does not understand what stands behind the command.", "Look at the addresses."),
    "5.5": ("The server speaks another version of the protocol.", _OPERATOR),
    "5.6": ("A line of the login is too long (RFC 4954).", "Use a shorter password or token."),
    "6.0": ("Something is wrong with the content.", "Look at the message: outmail show ID --raw"),
    "6.1": ("The server does not take this kind of content.", "Send it in another format."),
    "6.2": ("The content would have to be converted, which is not allowed.", "Send it as 7-bit text."),
    "6.3": (
        "The content would have to be converted, which the server cannot do.",
        "Send it as 7-bit text: what outmail composes is.",
    ),
    "6.4": ("The content was converted and has lost something.", "Send it in another format."),
    "6.5": ("The content could not be converted.", "Send it in another format."),
    "6.6": ("The server cannot get at the content (RFC 4468).", _OPERATOR),
    "6.7": (
        "An address that is not ASCII is not possible here (RFC 6531).",
        "Use an ASCII address of the same person, or a relay with SMTPUTF8.",
    ),
    "6.8": ("The answer would need UTF-8, which the client did not allow (RFC 6531).", ""),
    "6.9": (
        "The header is UTF-8, which a recipient's server does not take (RFC 6531).",
        "Use addresses and names in ASCII, or encoded words in the header.",
    ),
    "6.10": ("An older number of X.6.8.", ""),
    "7.0": ("A rule about security stands against it.", "The server's words say more."),
    "7.1": (
        "The server does not allow this delivery: to this recipient, from this client, or of this content.",
        "The server's words say which. Often a login is missing, or the message looks like spam.",
    ),
    "7.2": ("The sender may not write to this mailing list.", "Ask the list's owner."),
    "7.3": ("The message would have to be converted for security, which is not possible.", _OPERATOR),
    "7.4": ("The server lacks what the message asks for in security.", "Use another relay."),
    "7.5": ("Decryption or a signature went wrong.", "Look at the keys in use."),
    "7.6": ("The server does not know this kind of encryption or signature.", "Use a common one."),
    "7.7": ("The message was changed on its way.", "Look for what changes it between signing and here."),
    "7.8": (
        "User name or password is wrong (RFC 4954).",
        "Look at both. Many providers want a password for applications, not the one of the account.",
    ),
    "7.9": (
        "This way of login is too weak for the server (RFC 4954).",
        "Many providers want a password for applications here.",
    ),
    "7.10": ("The server wants encryption (RFC 5248).", "Use smtps://, or smtp:// with STARTTLS."),
    "7.11": ("This way of login needs encryption (RFC 4954).", "Use smtps://, or smtp:// with STARTTLS."),
    "7.12": ("The account must be changed to another way of login first (RFC 4954).", _OPERATOR),
    "7.13": ("The account is disabled (RFC 5248).", _OPERATOR),
    "7.14": ("The server must be told first to trust this client (RFC 5248).", _OPERATOR),
    "7.15": ("The message's priority is too low at the moment (RFC 6710).", "The queue tries again."),
    "7.16": ("The message is too large for its priority (RFC 6710).", "Send a smaller one."),
    "7.17": (
        "The mailbox has another owner since the date that the message names (RFC 7293).",
        "Ask the person for the new address.",
    ),
    "7.18": (
        "The domain has another owner since the date that the message names (RFC 7293).",
        "Ask the person for the new address.",
    ),
    "7.19": ("Whether the owner has changed cannot be told (RFC 7293).", "The queue tries again."),
    "7.20": ("No DKIM signature is valid (RFC 7372).", _DOMAIN),
    "7.21": ("A DKIM signature is valid, but not one that the server accepts (RFC 7372).", _DOMAIN),
    "7.22": ("No valid DKIM signature is of the author's domain (RFC 7372).", _DOMAIN),
    "7.23": ("The sender's domain does not allow this server to send for it: SPF (RFC 7372).", _DOMAIN),
    "7.24": ("The sender's SPF record could not be read (RFC 7372).", _DOMAIN),
    "7.25": (
        "The sending address has no name, or one that does not lead back to it (RFC 7372).",
        "Have the network's provider set the reverse DNS record, or send through a relay.",
    ),
    "7.26": ("Several of SPF, DKIM and DMARC failed (RFC 7372).", _DOMAIN),
    "7.27": (
        "The sender's domain says of itself that it takes no mail (RFC 7505).",
        "Use a sender at a domain that takes mail.",
    ),
    "7.28": ("Too much mail came from here in a short time.", "Set a `rate` for the relay."),
    "7.29": ("The chain of ARC signatures is broken (RFC 8617).", "Ask whoever forwards the message."),
    "7.30": ("The message may go on by TLS only, which the next server lacks (RFC 8689).", _OPERATOR),
}
