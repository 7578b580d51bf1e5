"""`cisterna init`: drafts a study of a table of the user's own (`cisterna.drafting.draft`)."""
