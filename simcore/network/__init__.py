"""What connects ranks: hosts, fabrics, routes."""
