"""What a run is scored and measured by: reward sources, judges that are asked while it trains, and its win rate."""
