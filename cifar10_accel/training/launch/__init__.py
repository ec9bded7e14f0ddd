"""The processes of a launch: they find each other, agree before they train, and end in time if one is lost."""
