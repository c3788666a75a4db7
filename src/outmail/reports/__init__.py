"""Reports: jobs, digests of log records, watched commands. A report is a message like any other.

Everything here is given the door (`door.ReportDoor`) and never builds it. Nothing here raises into the
program on which it reports.
"""
