"""The report's page: template, style and script, put together into one file that needs no network."""
