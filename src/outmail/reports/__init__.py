"""The reporting side: jobs, digests of log records, watched commands. A report is a message like any other.

Everything here is given the door (`door.ReportDoor`), never builds it; nothing here raises into the program
it reports on.
"""
