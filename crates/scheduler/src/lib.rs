//! Filters and scores by what nodes declare; binds through the API.
