"""The names that programs on Unix know: sendmail, mailq, newaliases, mail. Little is loaded until it is
needed.
"""

#: The command `outmail` acts by these names: when it is called so, or when one is its first word.
NAMES = ("sendmail", "mailq", "newaliases", "mail", "mailx")
