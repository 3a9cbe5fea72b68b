"""The manager's web page: it shows the API's records and uses the API's methods only."""
