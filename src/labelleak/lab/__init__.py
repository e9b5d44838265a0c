"""The lab: experiments on simulated clients, their networks and data sets, and the demo."""
