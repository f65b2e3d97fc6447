"""What clients connect to: the aiohttp application, the WebSocket codec and the turn driver."""
