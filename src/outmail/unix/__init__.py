"""The names that programs on Unix know: sendmail, mailq, newaliases, mail. Little is loaded until it is
needed.
"""
