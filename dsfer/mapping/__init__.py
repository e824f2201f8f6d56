"""Change maps of whole rasters: two GeoTIFFs and weights in, rasters and polygons for a GIS out."""
