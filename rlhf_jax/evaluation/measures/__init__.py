"""Numbers from judgments: win rates with intervals, length control, Bradley-Terry, agreement and reliability."""
