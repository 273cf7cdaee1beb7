"""Configuration as code: what a file says of routers, providers, roles and organizations, and what the tables say.

reading → checking → plan → applying      a file (document) becomes rows (current)
current → exporting                       rows become a file
foreign                                   files of other gateways become ours
"""
