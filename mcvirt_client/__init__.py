"""What people import and type: the client library and the mcvirt command."""
