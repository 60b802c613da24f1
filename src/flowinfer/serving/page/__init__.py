"""The page at the server's own address: one HTML file that asks the server like any other client."""
